"""The discriminators of HiFi-GAN (Kong, Kim & Bae 2020, section 2.3): by period, and by scale.

Axes: B clips, T samples, C channels, P the period.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

_SLOPE = 0.1
# Kernel, stride and the most groups of each convolution of a scale discriminator, as published.
_SCALE_CONVS = ((15, 1, 1), (41, 2, 4), (41, 2, 16), (41, 4, 16), (41, 4, 16), (41, 1, 16), (5, 1, 1))

PERIODS = (2, 3, 5, 7, 11)
PERIOD_CHANNELS = (32, 128, 512, 1024, 1024)
SCALE_CHANNELS = (128, 128, 256, 512, 1024, 1024, 1024)


class PeriodDiscriminator(nn.Module):
    """Looks at every P-th sample: the wave as an image of P columns, and convolutions down these."""

    def __init__(self, period: int, channels: Sequence[int]):
        """`channels` of each convolution; all but the last have stride 3."""
        super().__init__()
        self.period = period
        inputs, last = (1, *channels[:-1]), len(channels) - 1
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (5, 1), (3 if number < last else 1, 1), padding=(2, 0)))
            for number, (before, after) in enumerate(zip(inputs, channels, strict=True))
        )
        self.score = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave_BT: torch.Tensor) -> list[torch.Tensor]:
        """Its layers, (B, C, T / stride / P, P) each, the scores last."""
        padded = F.pad(wave_BT[:, None], (0, -wave_BT.shape[1] % self.period), "reflect")
        return _layers(self.convs, self.score, padded.unflatten(2, (-1, self.period)))


class ScaleDiscriminator(nn.Module):
    """Looks at the wave as it is; of the published three, the first has spectral norm, which takes more care."""

    def __init__(self, channels: Sequence[int], has_spectral_norm: bool):
        """`channels` of each of the seven convolutions."""
        super().__init__()
        norm: Any = spectral_norm if has_spectral_norm else weight_norm
        inputs = (1, *channels[:-1])
        self.convs = nn.ModuleList(
            norm(nn.Conv1d(before, after, kernel, stride, kernel // 2, groups=math.gcd(before, after, groups)))
            for before, after, (kernel, stride, groups) in zip(inputs, channels, _SCALE_CONVS, strict=True)
        )
        self.score = norm(nn.Conv1d(channels[-1], 1, 3, padding=1))

    def forward(self, wave_BT: torch.Tensor) -> list[torch.Tensor]:
        """Its layers, (B, C, T / stride) each, the scores last."""
        return _layers(self.convs, self.score, wave_BT[:, None])


def _layers(convs: nn.ModuleList, score: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    layers = []
    for conv in convs:
        x = F.leaky_relu(conv(x), _SLOPE)
        layers.append(x)
    return [*layers, score(x)]


class Discriminators(nn.Module):
    """One for each period, and one for each scale, of which each sees the wave at half the rate of the one before."""

    def __init__(
        self,
        periods: Sequence[int] = PERIODS,
        period_channels: Sequence[int] = PERIOD_CHANNELS,
        num_scales: int = 3,
        scale_channels: Sequence[int] = SCALE_CHANNELS,
    ):
        super().__init__()
        self.by_period = nn.ModuleList(PeriodDiscriminator(period, period_channels) for period in periods)
        self.by_scale = nn.ModuleList(ScaleDiscriminator(scale_channels, number == 0) for number in range(num_scales))

    def forward(self, wave_BT: torch.Tensor) -> list[list[torch.Tensor]]:
        """What each discriminator makes of the waves; see `psclap.tts.gan_losses`."""
        found = [discriminator(wave_BT) for discriminator in self.by_period]
        for number, discriminator in enumerate(self.by_scale):
            if number:
                wave_BT = F.avg_pool1d(wave_BT[:, None], 4, 2, padding=2)[:, 0]
            found.append(discriminator(wave_BT))
        return found
