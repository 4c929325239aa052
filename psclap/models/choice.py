"""What a ModelConfig chooses: encoders, fresh or pretrained, and what goes before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoTokenizer,
    FeatureExtractionMixin,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SeamlessM4TFeatureExtractor,
    WhisperFeatureExtractor,
)

from psclap.config import EncoderConfig, ModelConfig
from psclap.errors import PsclapError, first_line
from psclap.model_config import ParaSpeechCLAPConfig, encoder_config
from psclap.models.encoders import encoder_of, new_encoder
from psclap.models.feature_extractor import ParaSpeechCLAPFeatureExtractor
from psclap.models.tokenizer import as_text_tokenizer, train_tokenizer

_MAY_BE_MISSING = ("pooler.", "masked_spec_embed")  # parts that we do not use


def dual_config_for(
    config: ModelConfig, audio_config: PreTrainedConfig, text_config: PreTrainedConfig, **settings: Any
) -> ParaSpeechCLAPConfig:
    """The dual encoder's configuration; `settings` are what a ModelConfig does not know."""
    return ParaSpeechCLAPConfig(
        audio_config=audio_config,
        text_config=text_config,
        audio_pooling=config.speech.pooling,
        text_pooling=config.text.pooling,
        projection_dim=config.projection_dim,
        projection_dropout=config.projection_dropout,
        logit_scale_init_value=config.initial_logit_scale,
        **settings,
    )


def encoder_config_of(encoder: EncoderConfig) -> PreTrainedConfig:
    """The configuration of a tower's encoder. Raises PsclapError for one that cannot be loaded or made."""
    config = _pretrained(AutoConfig, encoder.pretrained) if encoder.pretrained else _fresh_config(encoder)
    # Layers and inputs dropped at random are no part of the published recipe; adapters, which shorten the frames for
    # a decoder, would let padding into them.
    unused = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "apply_spec_augment": False, "add_adapter": False}
    for name, value in unused.items():
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


def encoder_for(encoder: EncoderConfig, config: PreTrainedConfig) -> PreTrainedModel:
    """A tower's encoder, fresh or pretrained and in float32. Raises PsclapError where weights are missing."""
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
        raise PsclapError(
            f"model: {name!r} cannot be loaded ({first_line(error)}); give a model of the Hub, "
            "which needs a network or a filled cache, or the path of a local folder"
        ) from error


def tokenizer_for(config: ModelConfig, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """The pretrained text encoder's tokenizer, or one trained on `texts`."""
    if config.text.pretrained is not None:
        tokenizer = _pretrained(AutoTokenizer, config.text.pretrained)
        return as_text_tokenizer(tokenizer, config.max_text_tokens)
    assert config.tokenizer_vocab_size is not None  # ModelConfig has checked it
    return train_tokenizer(texts, config.tokenizer_vocab_size, config.max_text_tokens)


def feature_extractor_for(
    config: PreTrainedConfig, pretrained: str | None, sample_rate_hz: int, normalise: bool
) -> ParaSpeechCLAPFeatureExtractor:
    """What a speech encoder takes its waves through. Raises PsclapError for a rate that its features are not of."""
    if hasattr(config, "conv_kernel") and hasattr(config, "conv_stride"):  # an encoder of waves
        num_samples = 1
        for taps, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
            num_samples = (num_samples - 1) * stride + taps
        _check_rate(config.model_type, _rate_of(pretrained), sample_rate_hz)
        return ParaSpeechCLAPFeatureExtractor(sample_rate_hz, normalise, num_samples / sample_rate_hz)
    make_features = _FEATURES.get(config.model_type)
    if make_features is None:
        return ParaSpeechCLAPFeatureExtractor(
            sample_rate_hz, normalise, getattr(config, "window_length", 1) / sample_rate_hz
        )
    features = _pretrained(AutoFeatureExtractor, pretrained) if pretrained else make_features(config)
    _check_rate(config.model_type, features.sampling_rate, sample_rate_hz)
    longest_s = getattr(features, "chunk_length", None)
    return ParaSpeechCLAPFeatureExtractor(sample_rate_hz, False, _MIN_MEL_DURATION_S, longest_s, features.to_dict())


def _rate_of(pretrained: str | None) -> int | None:
    """The rate that a pretrained encoder of waves was trained at, where its folder says so."""
    if pretrained is None:
        return None
    try:
        settings, _ = FeatureExtractionMixin.get_feature_extractor_dict(pretrained)
    except (OSError, ValueError):  # it has none
        return None
    return settings.get("sampling_rate")


def _check_rate(model_type: str, hears_hz: int | None, sample_rate_hz: int) -> None:
    if hears_hz is not None and hears_hz != sample_rate_hz:
        raise PsclapError(
            f"model.speech: {model_type} hears {hears_hz} Hz and the shards hold {sample_rate_hz} Hz; "
            f"set shard.sample_rate_hz to {hears_hz}"
        )


def _whisper_features(config: PreTrainedConfig) -> FeatureExtractionMixin:
    frames_per_s = 50
    if config.max_source_positions % frames_per_s:
        raise PsclapError(
            f"model.speech.config: max_source_positions {config.max_source_positions} must be whole seconds, of "
            f"{frames_per_s} positions each; 1500 is Whisper's own"
        )
    return WhisperFeatureExtractor(config.num_mel_bins, chunk_length=config.max_source_positions // frames_per_s)


_MIN_MEL_DURATION_S = 0.05  # two steps of the encoder, whose features are normalised over a clip's frames
_FEATURES: Mapping[str, Callable[[Any], FeatureExtractionMixin]] = {
    "whisper": _whisper_features,
    "wav2vec2-bert": lambda config: SeamlessM4TFeatureExtractor(config.feature_projection_input_dim // 2),
}
"""The features of encoders that take no waves, by model type, where there is no pretrained one to ask."""
