"""The configurations of the dual encoder and of the compact speech encoder.

They lie beside `psclap.models` and import nothing else of transformers, for AutoConfig may know them before the rest of
transformers is there (`psclap.registration`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from psclap.remote_code import write_code


class LogMelConvConfig(PreTrainedConfig):
    """Of `psclap.models.logmel_conv`. Convolution number k has stride 2 where k is even, counted from 0."""

    model_type = "logmel_conv"

    sample_rate_hz: int = 16000
    num_mel_bins: int = 64
    window_length: int = 512
    hop_length: int = 320
    hidden_size: int = 64
    num_layers: int = 4
    kernel_size: int = 5


class ParaSpeechCLAPConfig(PreTrainedConfig):
    """The two encoders' own configurations, how each is pooled, and the projection they share."""

    model_type = "paraspeechclap"
    sub_configs: ClassVar = {"audio_config": AutoConfig, "text_config": AutoConfig}

    audio_config: Any = None  # a PreTrainedConfig, or the dictionary of one
    text_config: Any = None
    audio_pooling: str = "mean"
    text_pooling: str = "cls"
    projection_dim: int = 768
    projection_dropout: float = 0.5
    logit_scale_init_value: float = 1 / 0.07
    logit_bias_init_value: float | None = None  # of the sigmoid loss; InfoNCE has none

    def __post_init__(self, **kwargs: Any) -> None:
        for name in self.sub_configs:
            value = getattr(self, name)
            if isinstance(value, dict):
                setattr(self, name, encoder_config(**value))
        super().__post_init__(**kwargs)
        # Where transformers finds the classes in a model folder itself, see psclap/remote_code.py. Both in one
        # module: of every module that it is sent to, it makes a copy with classes of its own.
        self.auto_map = {
            "AutoConfig": "dual_encoder.ParaSpeechCLAPConfig",
            "AutoModel": "dual_encoder.ParaSpeechCLAPModel",
        }

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As transformers', with what others need to load the folder; a model that is saved saves its config, too."""
        super().save_pretrained(save_directory, **kwargs)
        write_code(Path(save_directory))


def encoder_config(model_type: str, **settings: Any) -> PreTrainedConfig:
    """The configuration of an encoder of transformers' or of ours. Raises ValueError for an unknown type."""
    if model_type == LogMelConvConfig.model_type:  # in a folder's own code, no Auto class knows it
        return LogMelConvConfig(**settings)
    return AutoConfig.for_model(model_type, **settings)
