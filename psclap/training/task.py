"""The contrastive task: what an example is, how examples become a batch, and the losses of a batch.

Axes: B clips of this rank, T samples, L tokens, V tags.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import nn

from psclap import audio, distributed
from psclap.config import TrainConfig
from psclap.losses.contrastive import info_nce
from psclap.losses.tags import tag_bce
from psclap.models import ParaSpeechCLAPModel, ParaSpeechCLAPProcessor
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
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in values.items()}
        return Batch(**moved)


class ContrastiveTask(nn.Module):
    """The dual encoder under InfoNCE and, where `tag_loss_weight` is positive, the tag loss over `tags`.

    `tags` are those that the training clips carry: a tag that no clip has would only ever be a negative, and in
    a corpus where it means something of the utterance, a false one.
    """

    def __init__(
        self,
        model: ParaSpeechCLAPModel,
        processor: ParaSpeechCLAPProcessor,
        config: TrainConfig,
        tags: Sequence[str],
    ):
        super().__init__()
        self.model, self.processor, self.config = model, processor, config
        self.tags = tuple(tags) if config.tag_loss_weight else ()
        self._number_of_tag = {tag: number for number, tag in enumerate(self.tags)}

    def example(self, row: dict[str, Any], clip: audio.Wave, rng: np.random.Generator) -> Example:
        """One of the clip's captions is drawn."""
        return Example(clip, str(rng.choice(row["captions"])), tuple(row["intrinsic_tags"]))

    def collate(self, examples: Sequence[Example], rng: np.random.Generator) -> Batch:
        """Pads clips and texts; a wording of each tag is drawn, the same on every rank."""
        waves = self.processor.waves([example.clip for example in examples])
        prompts = [str(rng.choice(training_prompts(tag))) for tag in self.tags]
        mine = [prompts[number] for number in distributed.my_share(len(prompts))]
        texts = self.processor.texts([example.caption for example in examples] + mine)
        has_tag = torch.zeros(len(examples), len(self.tags))
        for place, example in enumerate(examples):
            for tag in example.tags:
                if tag in self._number_of_tag:
                    has_tag[place, self._number_of_tag[tag]] = 1.0
        return Batch(
            input_values=waves["input_values"],
            audio_mask=waves["attention_mask"],
            input_ids=texts["input_ids"],
            text_mask=texts["attention_mask"],
            caption_id=torch.tensor([_caption_id(example.caption) for example in examples]),
            has_tag=has_tag,
        )

    def forward(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The losses of the global batch that `batch` is this rank's share of: (total, report of its parts).

        Every rank returns the same values; `distributed.all_gather` says why the gradients come out exact.
        """
        speech = self.model.embed_audio(batch.input_values, batch.audio_mask)
        texts = self.model.embed_text(batch.input_ids, batch.text_mask)
        captions, prompts = texts[: len(speech)], texts[len(speech) :]

        speech, captions = distributed.all_gather(speech), distributed.all_gather(captions)
        caption_id = distributed.all_gather(batch.caption_id)
        same = caption_id if self.config.duplicate_captions == "positives" else None
        contrastive = info_nce(speech, captions, self.model.logit_scale, same)
        if not self.tags:
            return contrastive, {"contrastive": contrastive.detach()}

        prompts = distributed.join_shares(distributed.all_gather(prompts), len(self.tags))
        tag_loss = tag_bce(speech, prompts, distributed.all_gather(batch.has_tag))
        total = contrastive + self.config.tag_loss_weight * tag_loss
        return total, {"contrastive": contrastive.detach(), "tags": tag_loss.detach()}


def _caption_id(caption: str) -> int:
    digest = hashlib.blake2b(caption.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
