"""The tasks of Speech-Clip and Clip-TTS: a model, its losses, and how its batches are made.

Every loss is a mean over the clips of the global batch, of means over a clip's symbols or frames; a rank computes the
sum over its own clips (`psclap.distributed`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from psclap import distributed
from psclap.losses.contrastive import info_nce
from psclap.models.quiet import no_progress_bars
from psclap.training.recipe import Losses
from psclap.tts import losses
from psclap.tts.aligner import forward_sum, monotonic_durations
from psclap.tts.batch import Batch, SpeechCollator
from psclap.tts.clip_tts import ClipTTSModel, Voice
from psclap.tts.mel import MelConfig
from psclap.tts.modules import length_mask
from psclap.tts.speech_clip import SpeechClipModel, SpeechPreTrainedModel, pooled
from psclap.tts.vocabulary import Vocabulary
from psclap.tts_config import SpeechTrainConfig


class _Aligned(NamedTuple):
    """A batch with its masks and its alignment."""

    mel: torch.Tensor  # (B, F, M) normalised
    symbol_mask: torch.Tensor  # (B, L)
    frame_mask: torch.Tensor  # (B, F)
    log_alignment: torch.Tensor  # (B, F, L)
    durations: torch.Tensor  # (B, L)
    symbol: torch.Tensor  # (B, F)


class _SpeechTask(nn.Module):
    """What both tasks share; `config` has the weights of the losses."""

    count_names: tuple[str, ...] = ()

    def __init__(self, model: SpeechPreTrainedModel, config: SpeechTrainConfig):
        super().__init__()
        self.model, self.config = model, config

    def collator(self) -> SpeechCollator:
        """Makes this rank's batches."""
        config = self.model.config
        return SpeechCollator(Vocabulary.of_config(config), MelConfig.from_dict(config.mel))

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """The model as a transformers folder."""
        with no_progress_bars():
            self.model.save_pretrained(folder, state_dict=weights)

    def after_step(self) -> None:
        """Nothing is held to bounds."""

    def values(self) -> dict[str, torch.Tensor]:
        """Nothing besides the losses."""
        return {}

    def precision(self, batch: Batch) -> AbstractContextManager[object]:
        """Autocast where the configuration asks for bfloat16."""
        if self.config.compute.precision == "fp32":
            return nullcontext()
        return torch.autocast(batch.mel.device.type, torch.bfloat16)

    def aligned(self, batch: Batch) -> _Aligned:
        """The batch with the best alignment that the aligner knows, in float32."""
        mask_BL = length_mask(batch.num_symbols, batch.symbols.shape[1])
        mask_BF = length_mask(batch.num_frames, batch.mel.shape[1])
        mel = self.model.normalise(batch.mel) * mask_BF[..., None]
        log_alignment = self.model.log_alignment(batch.symbols, mask_BL, mel, batch.num_frames)
        durations = monotonic_durations(log_alignment.detach(), batch.num_frames, batch.num_symbols)
        symbol = losses.symbol_of_frames(durations, mel.shape[1])
        return _Aligned(mel, mask_BL, mask_BF, log_alignment, durations, symbol)

    def alignment_sums(self, batch: Batch, aligned: _Aligned) -> dict[str, torch.Tensor]:
        """The aligner's losses, where it is trained."""
        if not self.config.alignment_weight:
            return {}
        sums = {"alignment": forward_sum(aligned.log_alignment, batch.num_frames, batch.num_symbols).sum()}
        if self.config.binarisation_weight:
            sums["binarisation"] = losses.binarisation(aligned.log_alignment, aligned.symbol, aligned.frame_mask)
        return sums

    def total(self, sums: Mapping[str, torch.Tensor], is_finite_b: torch.Tensor) -> Losses:
        """The weighted sum of the means over the global batch."""
        is_finite_B = distributed.all_gather(is_finite_b.float()) > 0
        shares = distributed.sum_of_shares(torch.stack([value.float() for value in sums.values()]))
        means = dict(zip(sums, (shares / len(is_finite_B)).unbind(), strict=True))
        total = sum((self.config.weights[name] * mean for name, mean in means.items()), shares.new_zeros(()))
        return Losses(total, {name: mean.detach() for name, mean in means.items()}, is_finite_B)


class SpeechClipTask(_SpeechTask):
    """Contrast of text and mel: by frame within a pair, pooled across the batch; alignment and durations."""

    model: SpeechClipModel

    def after_step(self) -> None:
        """The logit scale stays in its bounds."""
        self.model.clamp_logit_scale()

    def values(self) -> dict[str, torch.Tensor]:
        """The logit scale."""
        return {"logit_scale": self.model.logit_scale}

    def forward(self, batch: Batch) -> Losses:
        """The losses of the global batch that `batch` is this rank's share of."""
        aligned = self.aligned(batch)
        with self.precision(batch):
            states_BLD = self.model.text_encoder(batch.symbols, aligned.symbol_mask)
            frames_BFD = self.model.mel_encoder(aligned.mel, aligned.frame_mask)
            predicted_BL = self.model.text_encoder.duration_predictor(states_BLD, aligned.symbol_mask)
        states_BLD, frames_BFD = states_BLD.float(), frames_BFD.float()
        text_BD, speech_BD = pooled(states_BLD, aligned.durations), pooled(frames_BFD, aligned.frame_mask)
        sums = {
            **self.alignment_sums(batch, aligned),
            "frames": losses.frame_contrast(
                frames_BFD, states_BLD, self.model.logit_scale, aligned.symbol, aligned.frame_mask, aligned.symbol_mask
            ),
            "pooled": self._contrast(speech_BD, text_BD, batch.text_id),
            "duration": losses.duration_error(predicted_BL.float(), aligned.durations, aligned.symbol_mask),
        }
        return self.total(sums, (text_BD.isfinite() & speech_BD.isfinite()).all(1))

    def _contrast(self, speech_bD: torch.Tensor, text_bD: torch.Tensor, text_id_b: torch.Tensor) -> torch.Tensor:
        """This rank's share of InfoNCE, as a sum over its clips; the clips of one text are right for each other."""
        own = slice(distributed.rank() * len(speech_bD), (distributed.rank() + 1) * len(speech_bD))
        text_id_B = distributed.all_gather(text_id_b)
        speech_BD, text_BD = distributed.all_gather(torch.cat([speech_bD, text_bD], 1)).chunk(2, dim=1)
        return info_nce(speech_BD, text_BD, self.model.logit_scale, text_id_B, own) * len(text_id_B)


class ClipTTSTask(_SpeechTask):
    """Mel spectrograms from text and voice, and durations."""

    model: ClipTTSModel

    def forward(self, batch: Batch) -> Losses:
        """The losses of the global batch that `batch` is this rank's share of."""
        aligned = self.aligned(batch)
        with self.precision(batch):
            voice = Voice(batch.speakers, batch.styles)
            states_BLD = self.model.encode(batch.symbols, aligned.symbol_mask, voice)
            predicted_BL = self.model.text_encoder.duration_predictor(states_BLD, aligned.symbol_mask)
            predicted_BFM = self.model.decode(states_BLD, aligned.durations, aligned.mel.shape[1])
        predicted_BFM = predicted_BFM.float()
        sums = {
            **self.alignment_sums(batch, aligned),
            "mel": losses.mel_error(predicted_BFM, aligned.mel, aligned.frame_mask),
            "duration": losses.duration_error(predicted_BL.float(), aligned.durations, aligned.symbol_mask),
        }
        return self.total(sums, (predicted_BFM.isfinite() & aligned.mel.isfinite()).flatten(1).all(1))
