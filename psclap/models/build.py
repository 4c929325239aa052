"""A model and its processor: new from a ModelConfig, or from a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from psclap.config import ModelConfig
from psclap.errors import CheckpointError
from psclap.model_config import ParaSpeechCLAPConfig
from psclap.models.choice import dual_config_for, encoder_config_of, encoder_for, feature_extractor_for, tokenizer_for
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.feature_extractor import ParaSpeechCLAPFeatureExtractor
from psclap.models.processor import ParaSpeechCLAPProcessor
from psclap.models.quiet import no_progress_bars


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
    extractor = feature_extractor_for(audio_config, config.speech.pretrained, sample_rate_hz, config.normalise_audio)
    return model, ParaSpeechCLAPProcessor(extractor, tokenizer)


def load_model(folder: Path | str) -> tuple[ParaSpeechCLAPModel, ParaSpeechCLAPProcessor]:
    """The model and processor of a checkpoint folder, in evaluation mode.

    Raises CheckpointError where the folder is none, is of another architecture, or lacks weights.
    """
    folder = Path(folder)
    _check_is_ours(folder)
    try:
        with no_progress_bars():
            # A folder may come from anywhere: neither a pickle nor code of it is ever loaded.
            model, info = ParaSpeechCLAPModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
            processor = ParaSpeechCLAPProcessor.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # safetensors, JSON and transformers each raise their own kind
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder} is a damaged checkpoint: {first_line}; fetch or train it again") from error
    if not isinstance(processor.feature_extractor, ParaSpeechCLAPFeatureExtractor):
        raise CheckpointError(
            f"{folder} was written by an older psclap, with a {type(processor.feature_extractor).__name__}; "
            "train it again"
        )
    problems = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if problems:
        listing = "; ".join(f"{kind}: {', '.join(keys[:5])} ({len(keys)})" for kind, keys in problems.items())
        raise CheckpointError(f"the weights in {folder} do not fit its config.json: {listing}")
    return model.eval(), processor


def _check_is_ours(folder: Path) -> None:
    try:
        model_type = json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder} is no checkpoint folder: it has no readable config.json; give the folder that training "
            "wrote (such as models/combined) or a models:/ URI"
        ) from error
    if model_type != ParaSpeechCLAPConfig.model_type:
        raise CheckpointError(
            f"{folder} holds a model of type {model_type!r}, not {ParaSpeechCLAPConfig.model_type!r}; "
            "give a folder that `psclap` trained"
        )
