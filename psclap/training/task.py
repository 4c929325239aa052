"""The contrastive task: a dual encoder, its losses, and how its batches are made.

Axes: B clips of the global batch, b those of this rank, N this rank's texts, P its prompts among them, V tags, D
embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from psclap import distributed
from psclap.config import TrainConfig
from psclap.losses.contrastive import info_nce
from psclap.losses.sigmoid import sigmoid_pairs
from psclap.losses.tags import tag_bce
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.processor import ParaSpeechCLAPProcessor
from psclap.models.quiet import no_progress_bars
from psclap.training.batch import Batch, ContrastiveCollator
from psclap.training.recipe import Losses


class ContrastiveTask(nn.Module):
    """The dual encoder under its contrastive loss and, where `tag_loss_weight` is positive, the tag loss over `tags`.

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
        self.count_names = tuple(tags)

    def collator(self) -> ContrastiveCollator:
        """Makes this rank's batches; their counts are of `count_names`, in that order."""
        return ContrastiveCollator(self.processor, self.count_names, with_prompts=self.config.tag_loss_weight > 0)

    def after_step(self) -> None:
        """The logit scale stays in its bounds."""
        self.model.clamp_logit_scale()

    def values(self) -> dict[str, torch.Tensor]:
        """The logit scale and, where there is one, the bias."""
        bias = {} if self.model.logit_bias is None else {"logit_bias": self.model.logit_bias}
        return {"logit_scale": self.model.logit_scale, **bias}

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """Model and processor, as transformers loads them."""
        with no_progress_bars():
            self.model.save_pretrained(folder, state_dict=weights)
            self.processor.save_pretrained(folder)

    def forward(self, batch: Batch) -> Losses:
        """The losses of the global batch that `batch` is this rank's share of.

        Every rank computes its share of each loss, that of its own clips and captions against everyone's.
        """
        speech_bD, texts_ND = self._embed(batch)
        caption_bD, prompt_PD = texts_ND[: len(speech_bD)], texts_ND[len(speech_bD) :]
        caption_id_B, is_finite_B = self._of_all_ranks(batch, speech_bD, caption_bD)
        shares = [self._contrastive_share(speech_bD, caption_bD, caption_id_B)]
        if self.config.tag_loss_weight:
            prompt_VD = distributed.join_shares(distributed.all_gather(prompt_PD), len(self.count_names))
            shares += tag_bce(speech_bD, prompt_VD, batch.tags)

        contrastive, *tag_sum_and_count = distributed.sum_of_shares(torch.stack(shares)).unbind()
        total, report = contrastive, {"contrastive": contrastive.detach()}
        if tag_sum_and_count:
            tag_sum, num_tagged = tag_sum_and_count
            tag_loss = tag_sum / num_tagged.clamp(min=1)
            total, report["tags"] = contrastive + self.config.tag_loss_weight * tag_loss, tag_loss.detach()
        return Losses(total, report, is_finite_B)

    def _of_all_ranks(
        self, batch: Batch, speech_bD: torch.Tensor, caption_bD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) what is compared to tell which captions are the same, and (B,) whether a pair is finite."""
        is_finite_b = speech_bD.isfinite().all(1) & caption_bD.isfinite().all(1)
        caption_id_B, is_finite_B = distributed.all_gather(torch.stack([batch.caption_id, is_finite_b], 1)).unbind(1)
        if self.config.duplicate_captions == "negatives":
            caption_id_B = torch.arange(len(caption_id_B), device=caption_id_B.device)
        return caption_id_B, is_finite_B.bool()

    def _contrastive_share(
        self, speech_bD: torch.Tensor, caption_bD: torch.Tensor, caption_id_B: torch.Tensor
    ) -> torch.Tensor:
        own = slice(distributed.rank() * len(speech_bD), (distributed.rank() + 1) * len(speech_bD))
        scale, bias = self.model.logit_scale, self.model.logit_bias
        if self.config.contrastive_loss == "info_nce":
            speech_BD, caption_BD = distributed.all_gather(torch.cat([speech_bD, caption_bD], 1)).chunk(2, dim=1)
            return info_nce(speech_BD, caption_BD, scale, caption_id_B, own)
        assert bias is not None  # build_training_model gives one to the model of a sigmoid loss
        ids = caption_id_B.split(len(speech_bD))
        share = speech_bD.new_zeros(())
        for rank, text_bD in distributed.ring(caption_bD):
            share = share + sigmoid_pairs(speech_bD, text_bD, scale, bias, ids[distributed.rank()], ids[rank])
        return share / len(caption_id_B)

    def _embed(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(b, D) speech and (N, D) text embeddings in float32, L2-normalised."""
        return (
            self._in_chunks(self.model.embed_audio, batch.audio, batch.audio_mask, batch.audio_lengths),
            self._in_chunks(self.model.embed_text, batch.input_ids, batch.text_mask, batch.num_tokens),
        )

    def _in_chunks(
        self,
        embed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        inputs: torch.Tensor,
        mask: torch.Tensor,
        lengths: np.ndarray,
    ) -> torch.Tensor:
        """Gradient caching: of all chunks but one, no more than inputs and embeddings is alive at any time.

        The losses need all embeddings at once. The backward pass then comes chunk by chunk, the last one first,
        and computes each anew, with the same dropout.
        """

        def tower(inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            if self.config.compute.precision == "fp32":
                return embed(inputs, mask)
            with torch.autocast(inputs.device.type, torch.bfloat16):
                embeddings = embed(inputs, mask)
            return embeddings.float()

        size = self.config.compute.micro_batch_size
        if size is None or len(inputs) <= size:
            return tower(inputs, mask)
        chunks = []
        for start in range(0, len(inputs), size):
            rows = slice(start, start + size)
            chunks.append(checkpoint(tower, *_shorter(inputs[rows], mask[rows], lengths[rows]), use_reentrant=False))
        return torch.cat(chunks)


def _shorter(inputs: torch.Tensor, mask: torch.Tensor, lengths: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Without the padding beyond the longest, which would only cost time; Whisper's features have one length."""
    if inputs.shape[1] != mask.shape[1]:
        return inputs, mask
    longest = int(lengths.max())
    return inputs[:, :longest], mask[:, :longest]
