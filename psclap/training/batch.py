"""What a contrastive training example is, and how a rank's examples become its batch.

Axes: B clips of this rank, T samples, L tokens, V tags.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from psclap import audio, distributed
from psclap.models import ParaSpeechCLAPProcessor
from psclap.tags import training_prompts


@dataclass(frozen=True)
class Example:
    """One clip with one of its captions."""

    clip: audio.Wave
    caption: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """A rank's share of a global batch. The texts are its B captions, then its share of the tag prompts."""

    input_values: torch.Tensor  # (B, T)
    audio_mask: torch.Tensor  # (B, T)
    input_ids: torch.Tensor  # (B + prompts, L)
    text_mask: torch.Tensor  # (B + prompts, L)
    caption_id: torch.Tensor  # (B,) equal for equal captions, on every rank
    has_tag: torch.Tensor  # (B, V)

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU copies from without waiting."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed: dict[str, Any] = {field.name: change(getattr(self, field.name)) for field in fields(self)}
        return Batch(**changed)


@dataclass(frozen=True)
class ContrastiveCollator:
    """Makes the batches of one rank; `tags` are those of the tag loss. It goes to the loader processes."""

    processor: ParaSpeechCLAPProcessor
    tags: Sequence[str]
    rank: int = field(default_factory=distributed.rank)
    world_size: int = field(default_factory=distributed.world_size)

    def example(self, row: dict[str, Any], clip: audio.Wave, rng: np.random.Generator) -> Example:
        """One of the clip's captions is drawn."""
        return Example(clip, str(rng.choice(row["captions"])), tuple(row["intrinsic_tags"]))

    def collate(self, examples: Sequence[Example], rng: np.random.Generator) -> Batch:
        """Pads clips and texts; a wording of each tag is drawn, the same on every rank."""
        waves = self.processor.waves([example.clip for example in examples])
        prompts = [str(rng.choice(training_prompts(tag))) for tag in self.tags]
        mine = [prompts[number] for number in distributed.share(len(prompts), self.rank, self.world_size)]
        texts = self.processor.texts([example.caption for example in examples] + mine)
        has_tag = [[tag in example.tags for tag in self.tags] for example in examples]
        return Batch(
            input_values=waves["input_values"],
            audio_mask=waves["attention_mask"],
            input_ids=texts["input_ids"],
            text_mask=texts["attention_mask"],
            caption_id=torch.tensor([_caption_id(example.caption) for example in examples]),
            has_tag=torch.tensor(has_tag, dtype=torch.float32).reshape(len(examples), len(self.tags)),
        )


def _caption_id(caption: str) -> int:
    digest = hashlib.blake2b(caption.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
