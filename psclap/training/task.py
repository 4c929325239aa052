"""The contrastive task: a dual encoder, its losses, and how its batches are made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from psclap import distributed
from psclap.config import TrainConfig
from psclap.losses.contrastive import info_nce
from psclap.losses.tags import tag_bce
from psclap.models import ParaSpeechCLAPModel, ParaSpeechCLAPProcessor
from psclap.training.batch import Batch, ContrastiveCollator


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

    def collator(self) -> ContrastiveCollator:
        """Makes this rank's batches."""
        return ContrastiveCollator(self.processor, self.tags)

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
