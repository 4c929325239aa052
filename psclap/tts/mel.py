"""The one mel spectrogram of this package: models make it, vocoders take it, and both say by which definition.

Magnitudes (not powers) of a periodic Hann window, triangular filters on Slaney's mel scale with Slaney's
normalisation, and a logarithm above a floor: what the field's vocoders take. Definitions differ in numbers alone.

Axes: B waves, T samples, F frames, K bins of the Fourier transform, M mel bins.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from psclap.errors import AudioError, ConfigError
from psclap.strict import above, at_least, from_mapping

Count = TypeVar("Count", int, np.ndarray)

_TINY_POWER = 1e-30  # below it a magnitude counts as this one's: its own gradient would not be finite at 0


@dataclass(frozen=True)
class MelConfig:
    """A definition of log-mel spectrograms; two are the same where all their values are.

    `centred_on`: frame n is centred on the first sample of its hop, n * hop_length, or on the middle of the hop; the
    wave goes on before its start and after its end mirrored or with zeros, as `padding` says. `log` is the natural
    logarithm ("e") or that to base 10, of no less than `floor`.
    The values are checked by `from_dict`, and by `MelSpectrogram`.
    """

    sample_rate_hz: int = field(default=16000, metadata=at_least(1))
    fft_length: int = field(default=1024, metadata=at_least(2))
    window_length: int = field(default=1024, metadata=at_least(2))
    hop_length: int = field(default=256, metadata=at_least(1))
    num_mel_bins: int = field(default=80, metadata=at_least(1))
    min_hz: float = field(default=80.0, metadata=at_least(0))
    max_hz: float = field(default=7600.0, metadata=above(0))
    log: Literal["e", "10"] = "10"
    floor: float = field(default=1e-10, metadata=above(0))
    padding: Literal["reflect", "zero"] = "reflect"
    centred_on: Literal["hop_start", "hop_middle"] = "hop_start"

    def __post_init__(self) -> None:
        """Raises ConfigError for values that do not go together."""
        problems = []
        if not self.hop_length <= self.window_length <= self.fft_length:
            problems.append(
                f"hop_length {self.hop_length}, window_length {self.window_length}, fft_length {self.fft_length}: "
                "none may be above the next"
            )
        if not self.min_hz < self.max_hz <= self.sample_rate_hz / 2:
            problems.append(
                f"min_hz {self.min_hz}, max_hz {self.max_hz}: the first must be lower, the second no more than half "
                f"of sample_rate_hz {self.sample_rate_hz}"
            )
        if self.centred_on == "hop_middle" and (self.fft_length - self.hop_length) % 2:
            problems.append(
                f"centred_on 'hop_middle': fft_length {self.fft_length} less hop_length {self.hop_length} must be even"
            )
        if problems:
            raise ConfigError("\n".join(problems))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "mel") -> MelConfig:
        """The definition in a config.json. Raises ConfigError that names every broken or unknown key of `where`."""
        return from_mapping(cls, values, where)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` takes."""
        return dataclasses.asdict(self)

    def differences(self, other: MelConfig) -> list[str]:
        """The names of the values that differ."""
        return [
            field.name for field in dataclasses.fields(self) if getattr(self, field.name) != getattr(other, field.name)
        ]

    @property
    def pad_length(self) -> int:
        """The samples that are put before a wave, and after it."""
        return (self.fft_length - (self.hop_length if self.centred_on == "hop_middle" else 0)) // 2

    @property
    def log_floor(self) -> float:
        """The least value of a log-mel: that of silence."""
        return math.log(self.floor) if self.log == "e" else math.log10(self.floor)

    def frames(self, num_samples: Count) -> Count:
        """The number of frames of a wave, or of each; with centred frames, 1 + num_samples // hop_length.

        >>> MelConfig().frames(16000), LJSPEECH.frames(22050)
        (63, 86)
        """
        return 1 + (num_samples + 2 * self.pad_length - self.fft_length) // self.hop_length


def check_mel(values: Mapping[str, Any], sample_rate_hz: int, where: str) -> MelConfig:
    """The definition in a section of params.yaml, for shards of that sample rate.

    Raises ConfigError that names every broken key, a mel bin that would always be empty, and another rate.
    """
    mel = MelSpectrogram(MelConfig.from_dict(values, f"{where}.mel")).config
    if mel.sample_rate_hz != sample_rate_hz:
        raise ConfigError(
            f"{where}.mel.sample_rate_hz {mel.sample_rate_hz} must be {where}.shard.sample_rate_hz {sample_rate_hz}"
        )
    return mel


SPEECHT5 = MelConfig()
"""What microsoft/speecht5_hifigan takes: the targets of SpeechT5FeatureExtractor with its defaults, as
preprocessor_config.json of microsoft/speecht5_tts has them."""

LJSPEECH = MelConfig(sample_rate_hz=22050, min_hz=0.0, max_hz=8000.0, log="e", floor=1e-5, centred_on="hop_middle")
"""What the HiFi-GAN of its authors takes (LJ_V1 and the others: config_v1.json and meldataset.py of jik876/hifi-gan).
They add 1e-9 to the power, which moves values at the floor by less than 0.01."""

ESPNET_LJSPEECH = MelConfig(sample_rate_hz=22050)
"""The features of ESPnet's and ParallelWaveGAN's LJSpeech recipes (egs/ljspeech/voc1/conf/hifigan.v1.yaml of
kan-bayashi/ParallelWaveGAN), before these normalise them by the mean and deviation of their corpus."""


class MelSpectrogram:
    """Waves to log-mels by one definition. It holds no tensors, so it goes to other processes as it is."""

    def __init__(self, config: MelConfig):
        """Raises ConfigError for a broken value, and for a mel bin that would always be empty."""
        self.config = _checked(config)

    def __call__(self, wave: torch.Tensor) -> torch.Tensor:
        """(T,) or (B, T) waves in [-1, 1] to (..., F, M) float32 log-mels on their device, with gradient.

        F is `config.frames(T)`. In a batch the padding of shorter waves counts as sound: within half a window of its
        end, a wave alone gives other frames. Raises AudioError "too short" where there is too little to mirror.
        """
        magnitude = self.magnitude(wave)
        with torch.autocast(wave.device.type, enabled=False):
            mel = (magnitude @ _filters(self.config, wave.device)).clamp(min=self.config.floor)
        return mel.log() if self.config.log == "e" else mel.log10()

    def magnitude(self, wave: torch.Tensor) -> torch.Tensor:
        """(..., T) waves to the (..., F, K) magnitudes that the mels are made of; errors as a call's."""
        config, pad = self.config, self.config.pad_length
        if config.padding == "reflect" and wave.shape[-1] <= pad:
            raise AudioError(
                "too short", f"{wave.shape[-1]} samples; the mel definition mirrors {pad} and needs more than these"
            )
        mode = "reflect" if config.padding == "reflect" else "constant"
        padded = F.pad(wave.float()[None], (pad, pad), mode=mode)[0]
        frames = padded.unfold(-1, config.fft_length, config.hop_length) * window(config, wave.device)
        spectrum = torch.fft.rfft(frames)
        power = spectrum.real.square() + spectrum.imag.square()
        return power.clamp(min=_TINY_POWER).sqrt()


def mel_filters(config: MelConfig) -> np.ndarray:
    """(K, M) float64 triangles between neighbouring mel frequencies, each of area 1 over hertz (Slaney 1998).

    Raises ConfigError where a triangle lies between two bins of the Fourier transform, and would always be 0.
    """
    bins_hz = np.linspace(0, config.sample_rate_hz / 2, config.fft_length // 2 + 1)[:, None]
    edges = np.linspace(_mel(config.min_hz), _mel(config.max_hz), config.num_mel_bins + 2)
    low, middle, high = (np.array([_hz(edge) for edge in edges[n : n + config.num_mel_bins]]) for n in range(3))
    rising, falling = (bins_hz - low) / (middle - low), (high - bins_hz) / (high - middle)
    filters = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    if empty := int((filters.sum(0) == 0).sum()):
        raise ConfigError(
            f"num_mel_bins {config.num_mel_bins}: {empty} of them hold no frequency of an fft_length of "
            f"{config.fft_length}; lower the one or raise the other"
        )
    return filters


def _mel(hz: float) -> float:
    """Slaney's scale: linear below 1 kHz, which is 15 mels; 27 mels above are 6.4 times the frequency."""
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000, 6.4)


def _hz(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


@lru_cache  # an example in training makes a MelSpectrogram of its own, and its check takes as long as its mels
def _checked(config: MelConfig) -> MelConfig:
    checked = MelConfig.from_dict(config.to_dict())
    mel_filters(checked)
    return checked


# Kept for good, so they must not be tensors of the inference mode that a first call may be made in.
@lru_cache
@torch.inference_mode(False)
def _filters(config: MelConfig, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(mel_filters(config)).float().to(device)


@lru_cache
@torch.inference_mode(False)
def window(config: MelConfig, device: torch.device) -> torch.Tensor:
    """(fft_length,) Hann's, in the middle of a frame."""
    missing = config.fft_length - config.window_length
    hann = torch.hann_window(config.window_length, device=device)
    return F.pad(hann, (missing // 2, missing - missing // 2))
