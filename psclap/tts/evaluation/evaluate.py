"""A text-to-speech system on held-out sentences, beside what it should beat and what bounds it.

All are heard through one vocoder and compared with the recordings themselves. `copy_synthesis` is the recording
through that vocoder: what a perfect model would get. `mean_mel` says the mean of the training clips' mels in every
frame, at the right length: what knows no text. `untrained` is a model of the same configuration with its first weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from psclap.decoding import Wave
from psclap.errors import PsclapError
from psclap.tts.evaluation.distances import compare, mel_cepstra, mel_cepstral_distortion
from psclap.tts.evaluation.recordings import Recording, frames_of, log_mel_of, spread
from psclap.tts.mel import MelConfig

MODEL, UNTRAINED, COPY, MEAN = "model", "untrained", "copy_synthesis", "mean_mel"
Vocode = Callable[[torch.Tensor], torch.Tensor]
Speak = Callable[[Recording], np.ndarray]


class Synthesiser(Protocol):
    """What speaks: rows of the index to log-mels."""

    @property
    def mel(self) -> MelConfig:
        """The definition of its log-mels."""

    def can_say(self, row: Mapping[str, Any]) -> bool:
        """Whether it knows what a row of the index says, and who says it."""

    def speak(self, row: Mapping[str, Any]) -> np.ndarray:
        """(F, num_mel_bins) float32 log-mels of a row's transcript, in its language, speaker and style."""


@runtime_checkable
class TimedSynthesiser(Synthesiser, Protocol):
    """A synthesiser that can say how long each of its symbols lasts."""

    def durations(self, row: Mapping[str, Any]) -> tuple[Sequence[str], np.ndarray]:
        """The symbols of a row's transcript and (N,) the mel frames of each, as `speak` says them."""


@dataclass(frozen=True, eq=False)
class Sound:
    """What a system made of a recording's sentence."""

    log_mel: np.ndarray  # (F, num_mel_bins)
    wave: Wave  # (num_samples,)


@dataclass(frozen=True, eq=False)
class Heard:
    """What was measured: one row for each recording and system; and some of the sounds, by key and system."""

    rows: Sequence[Mapping[str, Any]]
    sounds: Mapping[str, Mapping[str, Sound]]


def systems(model: Synthesiser, average_mel_M: np.ndarray, untrained: Synthesiser | None = None) -> dict[str, Speak]:
    """A model and what stands beside it, by name."""

    def mean_mel(recording: Recording) -> np.ndarray:
        return np.tile(average_mel_M, (len(recording.log_mel), 1))

    return {
        COPY: lambda recording: recording.log_mel,
        MODEL: lambda recording: model.speak(recording.row),
        **({UNTRAINED: lambda recording: untrained.speak(recording.row)} if untrained else {}),
        MEAN: mean_mel,
    }


def evaluate(
    recordings: Sequence[Recording],
    speaks: Mapping[str, Speak],
    mel: MelConfig,
    vocode: Vocode,
    keep: int = 0,
) -> Heard:
    """Measures every system on every recording; keeps the sounds of `keep` recordings, evenly spread.

    Raises PsclapError for log-mels of another shape, of no frame, or that are not finite.
    """
    kept = {recording.key for recording in spread(recordings, keep)}
    rows: list[dict[str, Any]] = []
    sounds: dict[str, dict[str, Sound]] = {}
    for recording in recordings:
        made = {name: _sound(_log_mel(name, speak, recording, mel), vocode) for name, speak in speaks.items()}
        rows += [
            {"system": name, "key": recording.key, **_measure(recording, sound, mel)} for name, sound in made.items()
        ]
        if recording.key in kept:
            sounds[recording.key] = made
    return Heard(rows, sounds)


def _log_mel(name: str, speak: Speak, recording: Recording, mel: MelConfig) -> np.ndarray:
    log_mel = np.asarray(speak(recording), np.float32)
    if log_mel.ndim != 2 or log_mel.shape[1] != mel.num_mel_bins or not len(log_mel) or not np.isfinite(log_mel).all():
        raise PsclapError(
            f"{name} says {recording.row['transcript']!r} ({recording.key}) as log-mels of shape {log_mel.shape}, of "
            f"which {int((~np.isfinite(log_mel)).sum())} values are not finite; expected some frames of "
            f"{mel.num_mel_bins} finite values. Was it trained long enough, and with a learning rate that it bears?"
        )
    return log_mel


def _sound(log_mel: np.ndarray, vocode: Vocode) -> Sound:
    with torch.inference_mode():
        return Sound(log_mel, vocode(torch.from_numpy(log_mel)).float().cpu().numpy())


def _measure(recording: Recording, sound: Sound, mel: MelConfig) -> dict[str, float]:
    """The distances of what is heard; `mel_mcd_db` that of the log-mels themselves, which no vocoder has touched."""
    length = len(sound.log_mel) / len(recording.log_mel)
    heard = frames_of(sound.wave, log_mel_of(sound.wave, mel), mel)
    return {
        **compare(recording.frames, heard),
        "mel_mcd_db": mel_cepstral_distortion(recording.frames.cepstra, mel_cepstra(sound.log_mel, mel.log)),
        "length_ratio": length,
        "length_error": abs(length - 1),
    }
