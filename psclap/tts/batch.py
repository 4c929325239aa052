"""What a training example of Speech-Clip and Clip-TTS is, and how a rank's examples become its batch.

Axes: B clips of this rank, L symbols, F frames, M mel bins, S styles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from psclap.decoding import Wave
from psclap.training.tensors import TensorFields
from psclap.tts.mel import MelConfig, MelSpectrogram
from psclap.tts.vocabulary import PADDING, Vocabulary


@dataclass(frozen=True)
class Example:
    """One clip: the numbers of its symbols, its log-mels and its voice."""

    symbols: np.ndarray  # (L,)
    mel: torch.Tensor  # (F, M)
    speaker: int
    styles: np.ndarray  # (S,)
    text_id: int
    num_samples: int


@dataclass(frozen=True)
class Batch(TensorFields):
    """A rank's share of a global batch. The tensors go to the device; `counts` stays on the host."""

    symbols: torch.Tensor  # (B, L) filled up with PADDING
    num_symbols: torch.Tensor  # (B,)
    mel: torch.Tensor  # (B, F, M) log-mels, filled up with 0
    num_frames: torch.Tensor  # (B,)
    speakers: torch.Tensor  # (B,)
    styles: torch.Tensor  # (B, S)
    text_id: torch.Tensor  # (B,) equal for equal texts, on every rank
    counts: np.ndarray  # (2,) int64: clips, samples in all clips


@dataclass(frozen=True)
class SpeechCollator:
    """Makes the batches of one rank; it goes to the loader processes."""

    vocabulary: Vocabulary
    mel: MelConfig

    def example(self, row: dict[str, Any], clip: Wave, rng: np.random.Generator | None = None) -> Example:
        """A whole clip, one of those that psclap/tts/clips.py chooses: it has frames enough, and nothing unknown."""
        return Example(
            self.vocabulary.encode(row["phonemes"])[1],
            MelSpectrogram(self.mel)(torch.from_numpy(clip)),
            self.vocabulary.speaker(row["speaker"]) if self.vocabulary.speakers else 0,
            self.vocabulary.style(row["situational_tags"]),
            _text_id(row["transcript"]),
            len(clip),
        )

    def collate(self, examples: Sequence[Example], rng: np.random.Generator | None = None) -> Batch:
        """Pads symbols and frames."""
        return Batch(
            *padded([example.symbols for example in examples], [example.mel for example in examples]),
            speakers=torch.tensor([example.speaker for example in examples]),
            styles=torch.from_numpy(np.stack([example.styles for example in examples])),
            text_id=torch.tensor([example.text_id for example in examples]),
            counts=np.array([len(examples), sum(example.num_samples for example in examples)], np.int64),
        )


def padded(
    symbols: Sequence[np.ndarray], mels: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sentences, (L,) numbers of symbols and (F, M) log-mels each, as the first four tensors of a `Batch`."""
    return (
        pad_sequence([torch.from_numpy(numbers) for numbers in symbols], batch_first=True, padding_value=PADDING),
        torch.tensor([len(numbers) for numbers in symbols]),
        pad_sequence([*mels], batch_first=True),
        torch.tensor([len(mel) for mel in mels]),
    )


def _text_id(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
