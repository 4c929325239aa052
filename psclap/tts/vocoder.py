"""From log-mels to sound: Griffin-Lim, or a HiFi-GAN that is loaded by transformers' own classes.

A vocoder makes sense of one mel definition alone, so it is loaded for that of the model that will call it, and refused
where it has another. Ours carry it in config.json, under `mel`; those of published ones stand here.

Axes: B clips, F frames, M mel bins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import FastSpeech2ConformerHifiGan, PreTrainedModel, SpeechT5HifiGan

from psclap.errors import CheckpointError, PsclapError, first_line
from psclap.models.fetch import fetch
from psclap.models.quiet import no_progress_bars
from psclap.tts.griffin_lim import ITERATIONS, GriffinLim
from psclap.tts.mel import SPEECHT5, MelConfig
from psclap.tts_config import GRIFFIN_LIM

PUBLISHED = {"microsoft/speecht5_hifigan": SPEECHT5}
"""The definitions of vocoders on the Hub, which do not say them."""

# Their statistics are ESPnet's, of its corpus, and are not in the repository: its config.json has normalize_before
# false, and FastSpeech2Conformer gives mels of mean 0 and variance 1 (tests/models/fastspeech2_conformer of
# transformers; `--normalize global_mvn` in egs2/TEMPLATE/tts1/tts.sh of espnet).
_NORMALISED = ("espnet/fastspeech2_conformer_hifigan",)

_INAUDIBLE = 1e-4  # of a mel; the noise of 16 bits is at 1e-5

# Published folders have the model_type "hifigan", whatever their class.
_CLASSES: dict[str, type[PreTrainedModel]] = {
    "SpeechT5HifiGan": SpeechT5HifiGan,
    "FastSpeech2ConformerHifiGan": FastSpeech2ConformerHifiGan,
}


@dataclass(frozen=True)
class Vocoder:
    """Log-mels of the definition `mel` to waves, on `device`."""

    name: str
    mel: MelConfig
    device: torch.device
    make_sound: Callable[[torch.Tensor], torch.Tensor]
    """(B, F, M) to (B, F * hop_length)."""

    @torch.no_grad()
    def __call__(self, log_mel: torch.Tensor) -> torch.Tensor:
        """(F, M) or (B, F, M) log-mels to (T,) or (B, T) float32 waves in [-1, 1] on `device`, T = F * hop_length.

        Raises PsclapError for another shape, for no frame, and for values that are not finite.
        """
        shape = tuple(log_mel.shape)
        if log_mel.ndim not in (2, 3) or shape[-1] != self.mel.num_mel_bins or 0 in shape:
            raise PsclapError(
                f"a log-mel of the shape {shape}: the vocoder takes (frames, {self.mel.num_mel_bins}), or a batch of "
                "such, of one frame at least"
            )
        if not log_mel.isfinite().all():
            raise PsclapError("the log-mel holds values that are not finite; the model that made it has diverged")
        waves = self.make_sound(log_mel.to(self.device, torch.float32).reshape(-1, *shape[-2:]))
        return waves.reshape(*shape[:-2], -1)


def load_vocoder(
    name: str, mel: MelConfig, device: torch.device | str | None = None, iterations: int = ITERATIONS
) -> Vocoder:
    """The vocoder for a model's mels: "griffin-lim", a folder of a HiFi-GAN, or its name on the Hub (NAME@REVISION).

    `device`: the CPU where None. `iterations` are Griffin-Lim's. Raises PsclapError where the vocoder's mel definition
    is not known, or is another than `mel`, naming each value that differs; CheckpointError where its files are no
    whole HiFi-GAN of transformers.
    """
    device = torch.device("cpu" if device is None else device)
    if name == GRIFFIN_LIM:
        return Vocoder(name, mel, device, GriffinLim(mel, device, iterations))
    model, own = _load(name)
    convert = _conversion(name, mel, own)
    model = model.to(device)
    return Vocoder(name, mel, device, lambda log_mel: model(convert(log_mel)))


def load_generator(name: str, mel: MelConfig) -> PreTrainedModel:
    """The network of a HiFi-GAN for these mels as they are, to be trained on; errors as `load_vocoder`."""
    model, own = _load(name)
    _check_same(name, mel, own, tolerated=("floor",))
    return model


def _load(name: str) -> tuple[PreTrainedModel, MelConfig]:
    folder = fetch(name, pickled=True)
    config = _read_config(name, folder)
    model_class = _model_class(name, config)
    own = _definition(name, config)
    model = _load_model(name, folder, model_class, config)
    _check_shape(name, model, own)
    return model, own


def _read_config(name: str, folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{name} is no vocoder: its config.json cannot be read ({first_line(error)}); give {GRIFFIN_LIM!r}, a "
            "folder of a HiFi-GAN, or its name on the Hub"
        ) from error


def _model_class(name: str, config: dict[str, Any]) -> type[PreTrainedModel]:
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in _CLASSES:
        raise CheckpointError(
            f"{name}: config.json names the architecture {architecture}; vocoders are {', '.join(_CLASSES)} (of a "
            "training's checkpoint, `psclap.tts.hifigan.export_generator` makes one)"
        )
    return _CLASSES[architecture]


def _definition(name: str, config: dict[str, Any]) -> MelConfig:
    repository = name.split("@")[0]
    if config.get("mel") is not None:
        return MelConfig.from_dict(config["mel"], f"{name}: config.json: mel")
    if repository in PUBLISHED:
        return PUBLISHED[repository]
    if repository in _NORMALISED:
        raise PsclapError(
            f"{name} takes mels that are normalised by the statistics of the corpus of its model, and does not hold "
            "these; give a copy whose weights `mean` and `scale` are these, with `normalize_before` true and a `mel` "
            "key in its config.json, or another vocoder"
        )
    raise PsclapError(
        f"{name} does not say which mels it takes, and another definition than the model's would be noise; add to its "
        f'config.json the key "mel", such as {json.dumps({"mel": SPEECHT5.to_dict()})}'
    )


def _conversion(name: str, model: MelConfig, vocoder: MelConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes the vocoder's log-mels of the model's, exact above both floors: another logarithm is a factor.

    What the model does not tell apart from silence, a vocoder with a lower floor hears at the model's.
    """
    _check_same(name, model, vocoder, tolerated=("log", "floor"))
    in_e = {"e": 1.0, "10": math.log(10)}
    factor = in_e[model.log] / in_e[vocoder.log]
    return lambda log_mel: (log_mel * factor).clamp(min=vocoder.log_floor)


def _check_same(name: str, model: MelConfig, vocoder: MelConfig, tolerated: tuple[str, ...]) -> None:
    """Raises PsclapError for definitions that differ, but for what is tolerated; a floor, while it is inaudible."""
    differing = [key for key in model.differences(vocoder) if key not in tolerated]
    if vocoder.floor < model.floor > _INAUDIBLE:
        differing.append("floor")
    if differing:
        values = ", ".join(f"{key} {getattr(vocoder, key)} (the model: {getattr(model, key)})" for key in differing)
        raise PsclapError(
            f"{name} takes other mels than the model makes: {values}; train the model with the vocoder's definition, "
            f"or give {GRIFFIN_LIM!r} or a vocoder of the model's"
        )


def _load_model(name: str, folder: Path, model_class: type[PreTrainedModel], config: dict[str, Any]) -> PreTrainedModel:
    try:
        with no_progress_bars():
            model, loaded = model_class.from_pretrained(
                folder,
                config=model_class.config_class.from_dict(config),
                dtype=torch.float32,
                output_loading_info=True,
                local_files_only=True,
            )
    except Exception as error:  # transformers raises whatever a broken file brings it to
        raise CheckpointError(f"{name} cannot be loaded: {first_line(error)}") from error
    wrong = sorted(str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in loaded[kind])
    if wrong:
        raise CheckpointError(f"{name}: the weights do not fit its config.json: {', '.join(wrong[:8])}")
    return model.eval()


def _check_shape(name: str, model: PreTrainedModel, mel: MelConfig) -> None:
    """Raises CheckpointError for a network that cannot be of its own definition."""
    samples = math.prod(model.config.upsample_rates)
    rate_hz = getattr(model.config, "sampling_rate", mel.sample_rate_hz)
    pairs = {
        "num_mel_bins": (mel.num_mel_bins, model.config.model_in_dim, "model_in_dim"),
        "hop_length": (mel.hop_length, samples, "the product of upsample_rates"),
        "sample_rate_hz": (mel.sample_rate_hz, rate_hz, "sampling_rate"),
    }
    for key, (said, is_, what) in pairs.items():
        if said != is_:
            raise CheckpointError(f"{name}: its mel definition has {key} {said}, and its network {what} {is_}")
