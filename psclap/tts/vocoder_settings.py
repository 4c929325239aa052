"""The configuration of a HiFi-GAN that is trained here; the defaults are the published ones (V1), at 16 kHz."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from psclap.errors import ConfigError
from psclap.loop_config import LoopConfig
from psclap.strict import above, at_least, not_empty
from psclap.tts import discriminators
from psclap.tts.mel import SPEECHT5, MelConfig


@dataclass(frozen=True)
class GeneratorConfig:
    """The sizes of transformers' SpeechT5HifiGan, by its names."""

    upsample_initial_channel: int = field(default=512, metadata=at_least(2))
    upsample_rates: tuple[int, ...] = field(default=(4, 4, 4, 4), metadata=not_empty())
    upsample_kernel_sizes: tuple[int, ...] = field(default=(8, 8, 8, 8), metadata=not_empty())
    resblock_kernel_sizes: tuple[int, ...] = field(default=(3, 7, 11), metadata=not_empty())
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))

    def __post_init__(self) -> None:
        """Raises ConfigError for sizes that do not go together."""
        rates, kernels = self.upsample_rates, self.upsample_kernel_sizes
        if len(rates) != len(kernels) or any(k < r or (k - r) % 2 for r, k in zip(rates, kernels, strict=False)):
            raise ConfigError(
                f"upsample_rates {list(rates)} and upsample_kernel_sizes {list(kernels)}: each rate needs a kernel of "
                "its own size, or an even number larger"
            )
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ConfigError(
                f"resblock_kernel_sizes {list(self.resblock_kernel_sizes)} and resblock_dilation_sizes "
                f"{[*map(list, self.resblock_dilation_sizes)]}: each kernel needs a list of dilations"
            )
        if self.upsample_initial_channel % 2 ** len(rates):
            raise ConfigError(
                f"upsample_initial_channel {self.upsample_initial_channel} is halved {len(rates)} times; it must be "
                f"divisible by {2 ** len(rates)}"
            )


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The sizes of `psclap.tts.discriminators.Discriminators`."""

    periods: tuple[int, ...] = field(default=discriminators.PERIODS, metadata=not_empty())
    period_channels: tuple[int, ...] = field(default=discriminators.PERIOD_CHANNELS, metadata=not_empty())
    num_scales: int = field(default=3, metadata=at_least(0))
    scale_channels: tuple[int, ...] = discriminators.SCALE_CHANNELS

    def __post_init__(self) -> None:
        """Raises ConfigError for another number of channels than there are convolutions."""
        if len(self.scale_channels) != len(discriminators.SCALE_CHANNELS):
            raise ConfigError(
                f"scale_channels {list(self.scale_channels)} must be {len(discriminators.SCALE_CHANNELS)} numbers"
            )


@dataclass(frozen=True)
class VocoderConfig:
    """A HiFi-GAN and the mels that it takes. `start_from`: a vocoder's folder or name on the Hub, whose generator is
    trained on; `generator` is then not looked at.
    """

    mel: MelConfig = SPEECHT5
    generator: GeneratorConfig = GeneratorConfig()
    discriminators: DiscriminatorConfig = DiscriminatorConfig()
    start_from: str | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for a generator that makes another number of samples of a frame than the mels' hop."""
        samples = math.prod(self.generator.upsample_rates)
        if self.start_from is None and samples != self.mel.hop_length:
            raise ConfigError(
                f"generator.upsample_rates {list(self.generator.upsample_rates)} make {samples} samples of a frame; "
                f"mel.hop_length is {self.mel.hop_length}"
            )


@dataclass(frozen=True, kw_only=True)
class VocoderTrainConfig(LoopConfig):
    """One training of a HiFi-GAN, and the loop's keys.

    Examples are `segment_length` samples of clips, of which `max_crop_s` are read. `predicted_mels` is a folder of
    KEY.npy, (frames, bins) log-mels that a model makes of each whole clip: with it the vocoder is tuned to that model,
    and `max_crop_s` must reach the longest clip. Validated are `validation_clips` of val.
    Published are adamw, learning_rate 2e-4, adam_betas [0.8, 0.99], batches of 16, no max_grad_norm.
    """

    segment_length: int = field(default=8192, metadata=at_least(2))
    max_crop_s: float = field(metadata=at_least(0.1))
    predicted_mels: str | None = None
    feature_weight: float = field(default=2.0, metadata=at_least(0))
    mel_weight: float = field(default=45.0, metadata=above(0))
    validation_clips: int = field(default=16, metadata=at_least(1))

    BEST_METRICS: ClassVar[tuple[str, ...]] = ("val/mel_l1",)
    LOWER_IS_BETTER: ClassVar[tuple[str, ...]] = BEST_METRICS

    def __post_init__(self) -> None:
        """Raises ConfigError for what a GAN's step cannot do."""
        super().__post_init__()
        compute = self.compute
        if compute.compile or compute.gradient_checkpointing or compute.micro_batch_size is not None:
            raise ConfigError("compute: a vocoder's training knows precision alone; leave the other keys out")
