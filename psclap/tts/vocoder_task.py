"""HiFi-GAN's training step: two losses as one total, of which each parameter gets the gradient of its own.

A GAN is commonly two optimisers that take turns. Here the discriminators see what is made detached, so that their loss
moves them alone; and the generator's loss passes through discriminators whose parameters are constants, so that it
moves the generator alone. The sum's gradient is then that of either loss where it belongs, both at the weights before
the step.

Axes: B clips of the global batch, b those of this rank, T samples of a segment.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call

from psclap import distributed
from psclap.training.recipe import Losses
from psclap.tts.gan_losses import discriminator_loss, feature_matching, generator_loss
from psclap.tts.hifigan import VocoderGAN
from psclap.tts.mel import MelConfig, MelSpectrogram
from psclap.tts.vocoder_batch import Batch, MelFolder, SegmentCollator
from psclap.tts.vocoder_settings import VocoderTrainConfig


class _Seen(NamedTuple):
    """What the discriminators make of real waves and of made ones; `judged` carries no gradient to their parameters."""

    real: list[list[torch.Tensor]]
    made: list[list[torch.Tensor]]
    judged: list[list[torch.Tensor]]


class VocoderTask(nn.Module):
    """A HiFi-GAN under its losses."""

    count_names: tuple[str, ...] = ()

    def __init__(self, model: VocoderGAN, config: VocoderTrainConfig):
        super().__init__()
        self.model, self.config = model, config
        self.heard = MelSpectrogram(heard_mel(model.mel))

    def collator(self) -> SegmentCollator:
        """Makes this rank's batches."""
        folder = self.config.predicted_mels
        return SegmentCollator(
            self.model.mel, self.config.segment_length, None if folder is None else MelFolder(Path(folder))
        )

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """Generator and discriminators, as `export_generator` reads them."""
        self.model.save_pretrained(folder, state_dict=weights)

    def after_step(self) -> None:
        """Nothing is held to bounds."""

    def values(self) -> dict[str, torch.Tensor]:
        """Nothing besides the losses."""
        return {}

    def forward(self, batch: Batch) -> Losses:
        """The losses of the global batch: each is a mean over its clips, of which every rank has equally many."""
        with self._precision(batch.wave.device):
            made_bT = self.model(batch.log_mel)
            seen = self._seen(batch.wave, made_bT)
        made_bT = made_bT.float()
        is_finite_B = distributed.all_gather(made_bT.detach().isfinite().all(1).float()) > 0
        own = {
            "discriminator": discriminator_loss(seen.real, seen.made),
            "generator": generator_loss(seen.judged),
            "features": feature_matching([[layer.detach() for layer in layers] for layers in seen.real], seen.judged),
            "mel": (self.heard(made_bT) - self.heard(batch.wave)).abs().mean(),
        }
        shares = distributed.sum_of_shares(torch.stack([*own.values()]) / distributed.world_size())
        means = dict(zip(own, shares.unbind(), strict=True))
        total = (
            means["discriminator"]
            + means["generator"]
            + self.config.feature_weight * means["features"]
            + self.config.mel_weight * means["mel"]
        )
        return Losses(total, {name: mean.detach() for name, mean in means.items()}, is_finite_B)

    def _seen(self, real_bT: torch.Tensor, made_bT: torch.Tensor) -> _Seen:
        discriminators = self.model.discriminators
        both = discriminators(torch.cat([real_bT, made_bT.detach().to(real_bT.dtype)]))
        halves = [[layer.float().chunk(2) for layer in layers] for layers in both]
        constants = {name: parameter.detach() for name, parameter in discriminators.named_parameters()}
        judged = functional_call(discriminators, constants, (made_bT,))
        return _Seen(
            [[real for real, _ in layers] for layers in halves],
            [[made for _, made in layers] for layers in halves],
            [[layer.float() for layer in layers] for layers in judged],
        )

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        if self.config.compute.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)


def heard_mel(mel: MelConfig) -> MelConfig:
    """By which made and real waves are compared: over all frequencies, in natural logarithms above 1e-5, as published.

    A generator need not be given what lies above max_hz to be held to it.
    """
    return replace(mel, min_hz=0.0, max_hz=mel.sample_rate_hz / 2, log="e", floor=1e-5)
