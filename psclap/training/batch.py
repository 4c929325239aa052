"""What a contrastive training example is, and how a rank's examples become its batch.

Axes: B clips of this rank, N texts (its B captions, then its share of the tag prompts), T samples, L tokens, K the
most tags of one of the clips, V tags.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from psclap import distributed
from psclap.decoding import Wave
from psclap.models.processor import ParaSpeechCLAPProcessor
from psclap.tags import training_prompts
from psclap.training.tensors import TensorFields


@dataclass(frozen=True)
class Example:
    """One clip with one of its captions."""

    clip: Wave
    caption: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Batch(TensorFields):
    """A rank's share of a global batch. The tensors go to the device; the arrays stay on the host."""

    audio: torch.Tensor  # (B, T) waves, or the features that the speech encoder takes
    audio_mask: torch.Tensor  # (B, T) of the waves' samples, or of the features' frames
    input_ids: torch.Tensor  # (N, L)
    text_mask: torch.Tensor  # (N, L)
    caption_id: torch.Tensor  # (B,) equal for equal captions, on every rank
    tags: torch.Tensor  # (B, K) numbers of each clip's tags, filled up with V
    audio_lengths: np.ndarray  # (B,) each clip's length, in what the mask counts
    num_tokens: np.ndarray  # (N,) each text's length
    counts: np.ndarray  # (2 + V,) int64: clips, samples in all clips, then how many clips have each tag


@dataclass(frozen=True)
class ContrastiveCollator:
    """Makes the batches of one rank; `tags` are those that are counted, and prompted for where `with_prompts`.

    It goes to the loader processes.
    """

    processor: ParaSpeechCLAPProcessor
    tags: Sequence[str]
    with_prompts: bool
    rank: int = field(default_factory=distributed.rank)
    world_size: int = field(default_factory=distributed.world_size)

    def example(self, row: dict[str, Any], clip: Wave, rng: np.random.Generator) -> Example:
        """One of the clip's captions is drawn."""
        return Example(clip, str(rng.choice(row["captions"])), tuple(row["intrinsic_tags"]))

    def collate(self, examples: Sequence[Example], rng: np.random.Generator) -> Batch:
        """Pads clips and texts; a wording of each tag is drawn, the same on every rank."""
        inputs = self.processor.waves([example.clip for example in examples])
        audio_mask = inputs.pop("audio_attention_mask")
        (audio,) = inputs.values()
        texts = self.processor.texts([example.caption for example in examples] + self._prompts(rng))
        num_samples = sum(len(example.clip) for example in examples)
        tags = self._tags(examples)
        clips_with_tag = np.bincount(tags.ravel(), minlength=len(self.tags) + 1)[: len(self.tags)]
        return Batch(
            audio=audio,
            audio_mask=audio_mask,
            input_ids=texts["input_ids"],
            text_mask=texts["attention_mask"],
            caption_id=torch.tensor([_caption_id(example.caption) for example in examples]),
            tags=torch.from_numpy(tags),
            audio_lengths=audio_mask.sum(1).numpy(),
            num_tokens=texts["attention_mask"].sum(1).numpy(),
            counts=np.concatenate([[len(examples), num_samples], clips_with_tag]),
        )

    def _prompts(self, rng: np.random.Generator) -> list[str]:
        """This rank's share of the prompts."""
        if not self.with_prompts:
            return []
        prompts = [str(rng.choice(training_prompts(tag))) for tag in self.tags]
        return [prompts[number] for number in distributed.share(len(prompts), self.rank, self.world_size)]

    def _tags(self, examples: Sequence[Example]) -> np.ndarray:
        number = {tag: place for place, tag in enumerate(self.tags)}
        numbers = [sorted({number[tag] for tag in example.tags if tag in number}) for example in examples]
        tags = np.full((len(examples), max(map(len, numbers))), len(self.tags))
        for row, of_example in zip(tags, numbers, strict=True):
            row[: len(of_example)] = of_example
        return tags


def _caption_id(caption: str) -> int:
    digest = hashlib.blake2b(caption.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
