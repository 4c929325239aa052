"""What a vocoder's training example is: a segment of a clip, and its mels, of the clip or predicted by a model.

Axes: B clips of this rank, T samples of a segment, F frames of it, M mel bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from psclap.decoding import Wave
from psclap.errors import PsclapError, first_line
from psclap.training.tensors import TensorFields
from psclap.tts.mel import MelConfig, MelSpectrogram

PredictMel = Callable[[dict[str, Any]], np.ndarray]
"""A clip's metadata to (frames of the whole clip, M) log-mels; it goes to the loader processes."""


class Segment(NamedTuple):
    """One example."""

    wave: torch.Tensor  # (T,)
    log_mel: torch.Tensor  # (F, M)


@dataclass(frozen=True)
class Batch(TensorFields):
    """A rank's share of a global batch. The tensors go to the device; `counts` stays on the host."""

    wave: torch.Tensor  # (B, T)
    log_mel: torch.Tensor  # (B, F, M)
    counts: np.ndarray  # (2,) int64: clips, samples in all of them


@dataclass(frozen=True)
class SegmentCollator:
    """Makes the batches of one rank; it goes to the loader processes.

    `segment_length` is a multiple of the hop. Where `predicted` is given, mels come from there and the wave from the
    same place of the clip.
    """

    mel: MelConfig
    segment_length: int
    predicted: PredictMel | None = None

    def example(self, row: dict[str, Any], clip: Wave, rng: np.random.Generator) -> Segment:
        """A segment at random; a shorter clip goes on in silence. Raises PsclapError for predicted mels of no use."""
        wave = F.pad(torch.from_numpy(clip), (0, max(0, self.segment_length - len(clip))))
        num_frames = self.segment_length // self.mel.hop_length
        first = int(rng.integers(len(wave) // self.mel.hop_length - num_frames + 1))
        frames = slice(first, first + num_frames)
        log_mel = self._of_wave(wave, frames) if self.predicted is None else self.mels(row, clip)[frames]
        start = first * self.mel.hop_length
        missing = num_frames - len(log_mel)
        return Segment(
            wave[start : start + self.segment_length],
            F.pad(log_mel, (0, 0, 0, missing), value=self.mel.log_floor),
        )

    def collate(self, examples: Sequence[Segment], rng: np.random.Generator) -> Batch:
        """All segments have one length."""
        waves, log_mels = zip(*examples, strict=True)
        return Batch(torch.stack(waves), torch.stack(log_mels), np.array([len(waves), sum(map(len, waves))], np.int64))

    def _of_wave(self, wave: torch.Tensor, frames: slice) -> torch.Tensor:
        """Those frames of the wave's mels, of which no more than needed are computed."""
        hop = self.mel.hop_length
        context = -(-self.mel.pad_length // hop)
        first = max(0, frames.start - context)  # context is real sound, but where the clip begins or ends
        part = wave[first * hop : (frames.stop + context) * hop]
        return MelSpectrogram(self.mel)(part)[frames.start - first : frames.stop - first]

    def mels(self, row: dict[str, Any], clip: Wave) -> torch.Tensor:
        """(F, M) of a whole clip, its own or predicted; errors as `example`."""
        if self.predicted is None:
            return MelSpectrogram(self.mel)(torch.from_numpy(clip))
        log_mel = self.predicted(row)
        wanted = (self.mel.frames(len(clip)), self.mel.num_mel_bins)
        if log_mel.shape != wanted:
            raise PsclapError(
                f"clip {row['key']!r}: the predicted mels have the shape {log_mel.shape}, and the clip's {wanted}; "
                "make them of whole clips by the vocoder's mel definition, and set max_crop_s above the longest clip"
            )
        if not np.isfinite(log_mel).all():
            raise PsclapError(f"clip {row['key']!r}: the predicted mels hold values that are not finite")
        return torch.from_numpy(log_mel.astype(np.float32, copy=False))


@dataclass(frozen=True)
class MelFolder:
    """Predicted mels as KEY.npy in a folder."""

    folder: Path

    def holds(self, keys: Iterable[str]) -> np.ndarray:
        """(N,) whether there are mels of each clip."""
        names = {path.name for path in self.folder.iterdir()}
        return np.array([f"{key}.npy" in names for key in keys], bool)

    def __call__(self, row: dict[str, Any]) -> np.ndarray:
        """(F, M) of the clip. Raises PsclapError where they cannot be read."""
        path = self.folder / f"{row['key']}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise PsclapError(
                f"the predicted mels {path} cannot be read ({first_line(error)}); make them again"
            ) from error
