"""Held-out recordings, as they are compared with what says the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from psclap import audio
from psclap.acoustics import track_pitch
from psclap.decoding import Wave
from psclap.errors import PsclapError
from psclap.schema import Split
from psclap.shards.index import ShardIndex
from psclap.tts.clips import check_phonemes, long_enough
from psclap.tts.evaluation.distances import Frames, mel_cepstra
from psclap.tts.mel import MelConfig, MelSpectrogram

T = TypeVar("T")
_AVERAGED_CLIPS = 200


@dataclass(frozen=True, eq=False)
class Recording:
    """A clip at the rate of a mel definition: what the index says of it, its wave, its log-mels."""

    row: Mapping[str, Any]
    wave: Wave  # (num_samples,)
    log_mel: np.ndarray  # (F, num_mel_bins)
    mel: MelConfig

    @property
    def key(self) -> str:
        """The clip's name."""
        return self.row["key"]

    @cached_property
    def frames(self) -> Frames:
        """What is compared."""
        return frames_of(self.wave, self.log_mel, self.mel)


def recordings(index: ShardIndex, rows: np.ndarray, mel: MelConfig) -> list[Recording]:
    """The clips of some rows. Raises PsclapError where a shard is damaged."""
    found = []
    for number in rows.tolist():
        wave = read_wave(index, number, mel)
        found.append(Recording(index.row(number), wave, log_mel_of(wave, mel), mel))
    return found


def held_out(
    index: ShardIndex,
    split: Split,
    max_clips: int,
    mel: MelConfig,
    can_say: Callable[[Mapping[str, Any]], bool] = lambda row: True,
) -> tuple[np.ndarray, int]:
    """At most `max_clips` rows of a split, evenly spread over it, and how many clips with a transcript were left out.

    Left out are those that `can_say` denies, a row's phonemes, transcript, language and speaker each: of a phoneme or
    a speaker that no training clip had; and clips with fewer frames than phonemes, which cannot be aligned. Raises
    PsclapError where no clip is left that says something, and for shards that were made without phonemes.
    """
    check_phonemes(index)
    rows = index.rows_of(split)
    rows = rows[index.num_phonemes[rows] > 0]
    told = index.take(rows, ["phonemes", "transcript", "language", "speaker"]).to_pylist()
    sayable = long_enough(index, rows, mel) & np.array([can_say(row) for row in told], bool)
    if not sayable.any():
        raise PsclapError(
            f"{len(rows)} {split} clips of {index.location} have a transcript, and the model can say none of them in "
            "their time; speech cannot be compared"
        )
    return np.array(spread(rows[sayable].tolist(), max_clips)), int((~sayable).sum())


def average_mel(
    index: ShardIndex, mel: MelConfig, split: Split = "train", max_clips: int = _AVERAGED_CLIPS
) -> np.ndarray:
    """(num_mel_bins,) the mean over all frames of clips that are evenly spread over a split.

    Raises PsclapError where the split is empty.
    """
    rows = spread(index.rows_of(split).tolist(), max_clips)
    if not rows:
        raise PsclapError(f"{index.location} has no {split} clips to take the mean of")
    mels = [log_mel_of(read_wave(index, number, mel), mel) for number in rows]
    return np.concatenate(mels).mean(0, dtype=np.float64).astype(np.float32)


def spread(values: Sequence[T], count: int) -> list[T]:
    """At most `count` of the values, the first and the last among them, evenly spread.

    >>> spread("abcdefg", 3), spread("ab", 3)
    (['a', 'd', 'g'], ['a', 'b'])
    """
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, min(count, len(values))).tolist()]


def read_wave(index: ShardIndex, number: int, mel: MelConfig) -> Wave:
    """A clip at the rate of a mel definition."""
    return audio.resample(index.read_clip(number), index.sample_rate_hz, mel.sample_rate_hz)


def log_mel_of(wave: Wave, mel: MelConfig) -> np.ndarray:
    """(F, num_mel_bins) of a wave; what is shorter than a window is filled up with silence."""
    missing = max(0, mel.fft_length - len(wave))
    return MelSpectrogram(mel)(torch.from_numpy(np.pad(wave, (0, missing)))).numpy()


def frames_of(wave: Wave, log_mel: np.ndarray, mel: MelConfig) -> Frames:
    """What is compared of a wave whose log-mels these are."""
    times_s = frame_times_s(mel, np.arange(len(log_mel)))
    return Frames(mel_cepstra(log_mel, mel.log), track_pitch(wave, mel.sample_rate_hz).at(times_s))


def frame_times_s(mel: MelConfig, numbers: np.ndarray) -> np.ndarray:
    """(N,) the middles of frames, in seconds, given their numbers.

    >>> frame_times_s(MelConfig(hop_length=160), np.array([0, 10])).tolist()
    [0.0, 0.1]
    """
    shift = 0.5 if mel.centred_on == "hop_middle" else 0.0
    return (numbers + shift) * mel.hop_length / mel.sample_rate_hz
