"""A HiFi-GAN in training: the generator, which is transformers' own class, and its discriminators, in one model.

A checkpoint of the training holds both, so that it can be resumed; `export_generator` makes the vocoder of it.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from transformers import PreTrainedConfig, PreTrainedModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

from psclap.errors import CheckpointError, first_line
from psclap.files import atomic_folder, refuse_existing, share_files
from psclap.models.quiet import no_progress_bars
from psclap.tts.discriminators import Discriminators
from psclap.tts.mel import MelConfig
from psclap.tts.vocoder import load_generator
from psclap.tts.vocoder_settings import VocoderConfig


class VocoderGANConfig(PreTrainedConfig):
    """The keys of SpeechT5HifiGan's config.json with the `mel` that it takes, and the discriminators' sizes."""

    model_type = "psclap_vocoder_gan"

    generator: Any = None
    discriminators: Any = None


class VocoderGAN(PreTrainedModel):
    """Generator and discriminators, both with weight norm."""

    config_class = VocoderGANConfig
    main_input_name = "log_mel"

    def __init__(self, config: VocoderGANConfig):
        super().__init__(config)
        self.generator = SpeechT5HifiGan(SpeechT5HifiGanConfig.from_dict(config.generator))
        self.generator.apply_weight_norm()
        self.discriminators = Discriminators(**config.discriminators)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # The generator has done so itself, and torch's own initialisation is the discriminators'.
        return

    @property
    def mel(self) -> MelConfig:
        """The definition of the mels that the generator takes."""
        return MelConfig.from_dict(self.config.generator["mel"])

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        """(B, F, M) log-mels to (B, F * hop_length) waves."""
        return self.generator(log_mel)

    def plain_generator(self) -> SpeechT5HifiGan:
        """A copy of the generator without weight norm, as vocoders are kept."""
        plain = copy.deepcopy(self.generator)
        for module in plain.modules():
            if is_parametrized(module):
                remove_parametrizations(module, "weight")
        return plain


def build_gan(config: VocoderConfig, seed: int) -> VocoderGAN:
    """The model as it is before the first step. Raises PsclapError where `start_from` cannot be had, or takes other
    mels; its statistics, where it normalises mels, stay.
    """
    start = None if config.start_from is None else load_generator(config.start_from, config.mel)
    sizes = asdict(config.generator)
    if start is not None:
        sizes = {name: getattr(start.config, name) for name in (*sizes, "normalize_before", "leaky_relu_slope")}
    generator = SpeechT5HifiGanConfig(
        **{"normalize_before": False, **sizes},
        model_in_dim=config.mel.num_mel_bins,
        sampling_rate=config.mel.sample_rate_hz,
        mel=config.mel.to_dict(),
        architectures=["SpeechT5HifiGan"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gan = VocoderGAN(VocoderGANConfig(generator=generator.to_dict(), discriminators=asdict(config.discriminators)))
    if start is not None:
        _take_weights(gan.generator, start)
    return gan


@torch.no_grad()
def _take_weights(generator: nn.Module, plain: nn.Module) -> None:
    """Sets a generator with weight norm to the weights of one without."""
    for name, tensor in plain.state_dict().items():
        path, _, attribute = name.rpartition(".")
        module = generator.get_submodule(path)
        if attribute == "weight":
            module.weight = tensor  # its parametrisation takes it apart
        else:
            getattr(module, attribute).copy_(tensor)


def export_generator(checkpoint: Path | str, folder: Path | str) -> None:
    """Makes a vocoder's folder of a training's checkpoint; `load_vocoder` and transformers' SpeechT5HifiGan read it.

    It appears whole or not at all. Raises CheckpointError for what is no such checkpoint, PsclapError where `folder`
    exists.
    """
    checkpoint = Path(checkpoint)
    refuse_existing(folder)
    try:
        gan = VocoderGAN(VocoderGANConfig.from_pretrained(checkpoint))
        gan.load_state_dict(load_file(checkpoint / "model.safetensors"))
    except (OSError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint} is no checkpoint of a vocoder's training: {first_line(error)}") from error
    with atomic_folder(folder) as partial, no_progress_bars():
        gan.plain_generator().save_pretrained(partial)
        share_files(partial)
