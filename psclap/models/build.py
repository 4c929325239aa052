"""A model and its processor: new from a ModelConfig, or from a checkpoint folder."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoTokenizer,
    FeatureExtractionMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SeamlessM4TFeatureExtractor,
    WhisperFeatureExtractor,
)

from psclap.config import EncoderConfig, ModelConfig
from psclap.errors import CheckpointError, PsclapError
from psclap.model_config import ParaSpeechCLAPConfig, encoder_config
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.encoders import encoder_of, new_encoder
from psclap.models.feature_extractor import ParaSpeechCLAPFeatureExtractor
from psclap.models.processor import ParaSpeechCLAPProcessor
from psclap.models.quiet import no_progress_bars

_MAY_BE_MISSING = ("pooler.", "masked_spec_embed")  # parts that we do not use
_SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


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
    tokenizer = _tokenizer(config, texts)
    audio_config = _encoder_config(config.speech)
    text_config = _encoder_config(config.text)
    if hasattr(audio_config, "sample_rate_hz"):
        audio_config.sample_rate_hz = sample_rate_hz
    if config.text.pretrained is None:
        text_config.vocab_size = len(tokenizer)
        text_config.pad_token_id = tokenizer.pad_token_id
    dual_config = ParaSpeechCLAPConfig(
        audio_config=audio_config,
        text_config=text_config,
        audio_pooling=config.speech.pooling,
        text_pooling=config.text.pooling,
        projection_dim=config.projection_dim,
        projection_dropout=config.projection_dropout,
        logit_scale_init_value=config.initial_logit_scale,
        logit_bias_init_value=initial_logit_bias,
    )
    model = ParaSpeechCLAPModel(
        dual_config,
        audio_model=_encoder(config.speech, audio_config),
        text_model=_encoder(config.text, text_config),
    )
    extractor = feature_extractor(audio_config, config.speech.pretrained, sample_rate_hz, config.normalise_audio)
    return model, ParaSpeechCLAPProcessor(extractor, tokenizer)


def feature_extractor(
    config: PreTrainedConfig, pretrained: str | None, sample_rate_hz: int, normalise: bool
) -> ParaSpeechCLAPFeatureExtractor:
    """What a speech encoder takes its waves through. Raises PsclapError for a rate that its features are not of."""
    if hasattr(config, "conv_kernel") and hasattr(config, "conv_stride"):  # an encoder of waves
        num_samples = 1
        for taps, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
            num_samples = (num_samples - 1) * stride + taps
        return ParaSpeechCLAPFeatureExtractor(sample_rate_hz, normalise, num_samples / sample_rate_hz)
    make_features = _FEATURES.get(config.model_type)
    if make_features is None:
        return ParaSpeechCLAPFeatureExtractor(sample_rate_hz, normalise)
    features = _pretrained(AutoFeatureExtractor, pretrained) if pretrained else make_features(config)
    if features.sampling_rate != sample_rate_hz:
        raise PsclapError(
            f"model.speech: {config.model_type} hears {features.sampling_rate} Hz and the shards hold "
            f"{sample_rate_hz} Hz; set shard.sample_rate_hz to {features.sampling_rate}"
        )
    longest_s = getattr(features, "chunk_length", None)
    return ParaSpeechCLAPFeatureExtractor(sample_rate_hz, False, _MIN_MEL_DURATION_S, longest_s, features.to_dict())


_MIN_MEL_DURATION_S = 0.05  # two steps of the encoder, whose features are normalised over a clip's frames
_FEATURES: Mapping[str, Callable[[Any], FeatureExtractionMixin]] = {
    "whisper": lambda config: WhisperFeatureExtractor(
        config.num_mel_bins, chunk_length=config.max_source_positions * 2 * 160 // 16000
    ),
    "wav2vec2-bert": lambda config: SeamlessM4TFeatureExtractor(config.feature_projection_input_dim // 2),
}
"""The features of encoders that take no waves, by model type, where there is no pretrained one to ask."""


def _encoder_config(encoder: EncoderConfig) -> PreTrainedConfig:
    config = _pretrained(AutoConfig, encoder.pretrained) if encoder.pretrained else _fresh_config(encoder)
    # Layers and inputs dropped at random are no part of the published recipe.
    for name, value in {"layerdrop": 0.0, "apply_spec_augment": False}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return config


def _fresh_config(encoder: EncoderConfig) -> PreTrainedConfig:
    """The configuration of an encoder without pretrained weights. Raises PsclapError for unknown keys."""
    assert encoder.config is not None  # EncoderConfig has checked it
    model_type = encoder.config["model_type"]
    try:
        known, config = encoder_config(model_type), encoder_config(**encoder.config)
    except (ValueError, TypeError) as error:
        raise PsclapError(f"model: no encoder can be made from {dict(encoder.config)}: {error}") from error
    unknown = sorted(key for key in encoder.config if not hasattr(known, key))
    if unknown:  # transformers itself would keep them without a word
        raise PsclapError(f"model: {model_type} has no settings {unknown}; correct them in the encoder's config")
    return config


def check_encoders(config: ModelConfig) -> None:
    """Raises PsclapError for a fresh encoder's config that transformers does not know; needs no network."""
    for encoder in (config.speech, config.text):
        if encoder.pretrained is None:
            _fresh_config(encoder)


def _encoder(encoder: EncoderConfig, config: PreTrainedConfig) -> PreTrainedModel:
    if encoder.pretrained is None:
        return new_encoder(config)
    # fp32 whatever the stored type: the published recipe trains in it, and both towers must agree.
    model, info = _pretrained(
        AutoModel, encoder.pretrained, config=config, dtype=torch.float32, output_loading_info=True
    )
    lacking = sorted(key for key in info["missing_keys"] if not key.startswith(_MAY_BE_MISSING))
    lacking += sorted(map(str, info["mismatched_keys"]))
    if lacking:
        raise PsclapError(
            f"model: the weights of {encoder.pretrained!r} lack {len(lacking)} of the model's tensors, such as "
            f"{lacking[0]}; they would be random: fetch the folder again or correct its config.json"
        )
    return encoder_of(model)


def _pretrained(auto_class: type, name: str, **kwargs):  # type: ignore[no-untyped-def]
    try:
        return auto_class.from_pretrained(name, **kwargs)  # type: ignore[attr-defined]
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise PsclapError(
            f"model: {name!r} cannot be loaded ({first_line}); give a model of the Hub, "
            "which needs a network or a filled cache, or the path of a local folder"
        ) from error


def _tokenizer(config: ModelConfig, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    if config.text.pretrained is not None:
        tokenizer = _pretrained(AutoTokenizer, config.text.pretrained)
        return as_text_tokenizer(tokenizer, config.max_text_tokens)
    assert config.tokenizer_vocab_size is not None  # ModelConfig has checked it
    return train_tokenizer(texts, config.tokenizer_vocab_size, config.max_text_tokens)


def as_text_tokenizer(tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> PreTrainedTokenizerBase:
    """A pretrained tokenizer that gives what our text tower takes: ids and a mask, padded at the end."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, max_tokens)
    tokenizer.model_input_names, tokenizer.padding_side = ["input_ids", "attention_mask"], "right"
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_tokens: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer: every character, then the most frequent words of `texts`.

    Equal texts give equal tokenizers, which the trainers of `tokenizers` do not promise.
    """
    normalizer, pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
    )
    characters = sorted({character for word in words for character in word})
    pieces = [*_SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    pieces += sorted(words, key=lambda word: (-words[word], word))
    vocabulary = {piece: number for number, piece in enumerate(list(dict.fromkeys(pieces))[:vocab_size])}

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )


def load_model(folder: Path | str) -> tuple[ParaSpeechCLAPModel, ParaSpeechCLAPProcessor]:
    """The model and processor of a checkpoint folder, in evaluation mode.

    Raises CheckpointError where the folder is none, is of another architecture, or lacks weights.
    """
    folder = Path(folder)
    _check_is_ours(folder)
    try:
        with no_progress_bars():
            model, info = ParaSpeechCLAPModel.from_pretrained(folder, output_loading_info=True)
            processor = ParaSpeechCLAPProcessor.from_pretrained(folder)
    except Exception as error:  # safetensors, JSON and transformers each raise their own kind
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder} is a damaged checkpoint: {first_line}; fetch or train it again") from error
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
