"""A model and its processor: new from a ModelConfig, or from a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from psclap.config import ModelConfig
from psclap.errors import CheckpointError, first_line
from psclap.model_config import ParaSpeechCLAPConfig
from psclap.models.choice import dual_config_for, encoder_config_of, encoder_for, feature_extractor_for, tokenizer_for
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.feature_extractor import ParaSpeechCLAPFeatureExtractor
from psclap.models.processor import ParaSpeechCLAPProcessor
from psclap.models.quiet import no_progress_bars

M = TypeVar("M", bound=PreTrainedModel)


def build_model(
    config: ModelConfig,
    texts: Iterable[str],
    sample_rate_hz: int,
    seed: int,
    initial_logit_bias: float | None = None,
) -> tuple[ParaSpeechCLAPModel, ParaSpeechCLAPProcessor]:
    """A model with fresh or pretrained encoders and fresh projections, and its processor.

    A fresh text encoder's tokenizer is trained on `texts`. The sigmoid loss needs a logit bias. Equal arguments give
    equal weights. Raises PsclapError for encoders that cannot be loaded.
    """
    torch.manual_seed(seed)
    tokenizer = tokenizer_for(config, texts)
    audio_config = encoder_config_of(config.speech)
    text_config = encoder_config_of(config.text)
    if hasattr(audio_config, "sample_rate_hz"):
        audio_config.sample_rate_hz = sample_rate_hz
    if config.text.pretrained is None:
        text_config.vocab_size = len(tokenizer)
        text_config.pad_token_id = tokenizer.pad_token_id
    model = ParaSpeechCLAPModel(
        dual_config_for(config, audio_config, text_config, logit_bias_init_value=initial_logit_bias),
        audio_model=encoder_for(config.speech, audio_config),
        text_model=encoder_for(config.text, text_config),
    )
    for of_tower in (model.config.audio_config, model.config.text_config):
        if Path(of_tower.name_or_path).exists():  # where an encoder lay on this machine is nobody's business
            of_tower.name_or_path = ""
    extractor = feature_extractor_for(audio_config, config.speech.pretrained, sample_rate_hz, config.normalise_audio)
    return model, ParaSpeechCLAPProcessor(extractor, tokenizer)


def load_model(folder: Path | str) -> tuple[ParaSpeechCLAPModel, ParaSpeechCLAPProcessor]:
    """The model and processor of a checkpoint folder, in evaluation mode.

    Raises CheckpointError where the folder is none, is of another architecture, or lacks weights.
    """
    folder = Path(folder)
    check_is_ours(folder)
    model = load_weights(ParaSpeechCLAPModel, folder)
    try:
        with no_progress_bars():
            processor = ParaSpeechCLAPProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise _damaged(folder, error) from error
    if not isinstance(processor.feature_extractor, ParaSpeechCLAPFeatureExtractor):
        raise CheckpointError(
            f"{folder} was written by an older psclap, with a {type(processor.feature_extractor).__name__}; "
            "train it again"
        )
    return model, processor


def load_weights(model_class: type[M], folder: Path) -> M:
    """The model of a folder of this class, in evaluation mode. Raises CheckpointError where it is not whole."""
    try:
        with no_progress_bars():
            # A folder may come from anywhere: neither a pickle nor code of it is ever loaded.
            model, info = model_class.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # safetensors, JSON and transformers each raise their own kind
        raise _damaged(folder, error) from error
    problems = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if problems:
        listing = "; ".join(f"{kind}: {', '.join(keys[:5])} ({len(keys)})" for kind, keys in problems.items())
        raise CheckpointError(f"the weights in {folder} do not fit its config.json: {listing}")
    return model.eval()


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder} is a damaged checkpoint: {first_line(error)}; fetch or train it again")


OUR_TYPES = (ParaSpeechCLAPConfig.model_type, "speech_clip", "clip_tts")
"""The types of the models that psclap trains, the dual encoder's first."""


def check_is_ours(folder: Path, types: Collection[str] = (ParaSpeechCLAPConfig.model_type,)) -> str:
    """The type of the model in a folder, which is one of `types`.

    Raises CheckpointError for a folder whose config.json is of none of them, or asks for more than weights.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        model_type = config["model_type"]
        parts = [config, *(config[name] for name in ParaSpeechCLAPConfig.sub_configs if name in config)]
        asked = sorted({key for part in parts for key in part if key.lstrip("_") in _NOT_TAKEN})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is no checkpoint folder: it has no readable config.json; give the folder that training "
            "wrote (such as models/combined) or a models:/ URI"
        ) from error
    if model_type not in types:
        raise CheckpointError(
            f"{folder} holds a model of type {model_type!r}, not {' or '.join(map(repr, types))}; "
            "give a folder that `psclap` trained"
        )
    if asked:
        raise CheckpointError(f"{folder}: config.json asks for {', '.join(asked)}, which may load code; remove it")
    _check_parts(folder / "model.safetensors.index.json")
    return model_type


def _check_parts(index: Path) -> None:
    """Raises CheckpointError where weights in several files are said to lie elsewhere."""
    names = json.loads(index.read_text())["weight_map"].values() if index.is_file() else ()
    if elsewhere := sorted({str(name) for name in names if Path(str(name)).name != name}):
        raise CheckpointError(f"{index} names files outside its folder ({elsewhere[0]}); fetch the model again")


_NOT_TAKEN = ("attn_implementation", "attn_implementation_internal", "quantization_config")
"""Settings of config.json by which transformers would load kernels or packages."""
