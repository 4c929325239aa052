"""Validation inside a training of Speech-Clip or Clip-TTS, on the val split."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from psclap import distributed
from psclap.errors import PsclapError
from psclap.metrics import retrieval_metrics
from psclap.shards.index import ShardIndex
from psclap.tts.batch import Batch, SpeechCollator
from psclap.tts.clip_tts import Voice
from psclap.tts.evaluation.retrieval import DIRECTIONS, text_mel_ranks
from psclap.tts.modules import length_mask
from psclap.tts.task import ClipTTSTask, SpeechClipTask

_CLIPS_AT_ONCE = 8
_RANKS = ("MRR", "R@1", "R@5", "R@10")


class _Clips:
    """Clips of val; each rank goes through its share of them."""

    def __init__(self, index: ShardIndex, rows: np.ndarray):
        if len(rows) < 2:
            raise PsclapError(
                f"{index.location} has {len(rows)} val clips that a model of its train clips can say (with a "
                "transcript, neither too long nor too short for it, of phonemes and speakers that train has); "
                "validation needs two or more"
            )
        self.index, self.rows = index, rows
        self.texts: list[str] = index.take(rows, ["transcript"])["transcript"].to_pylist()

    def measured(
        self, collator: SpeechCollator, measure: Callable[[Batch], torch.Tensor], alive: Callable[[], None]
    ) -> np.ndarray:
        """(N, K) what `measure` gives for the clips of each batch, (B, K), in the clips' order and on every rank."""
        own = [measure(batch) for batch in self._batches(collator, alive)]
        return distributed.join_shares(distributed.all_gather(torch.cat(own)), len(self.rows)).cpu().numpy()

    def _batches(self, collator: SpeechCollator, alive: Callable[[], None]) -> Iterator[Batch]:
        own = self.rows[distributed.my_share(len(self.rows))].tolist()
        for start in range(0, len(own), _CLIPS_AT_ONCE):
            alive()
            rows = own[start : start + _CLIPS_AT_ONCE]
            yield collator.collate([collator.example(self.index.row(row), self.index.read_clip(row)) for row in rows])


class SpeechClipValidation:
    """Retrieval of texts by mels and of mels by texts; clips of one text are right for each other."""

    def __init__(self, index: ShardIndex, rows: np.ndarray):
        """`rows` are the clips. Raises PsclapError for fewer than two."""
        self._clips = _Clips(index, rows)

    def metrics(self, task: SpeechClipTask, alive: Callable[[], None]) -> dict[str, float]:
        """`val/...` of mels to texts, `val/text_to_mel/...` of texts to mels."""
        model = task.model.eval()

        def embed(batch: Batch) -> torch.Tensor:
            batch = batch.to(model.device)
            with torch.inference_mode():
                pair = model.embed(batch.symbols, batch.num_symbols, batch.mel, batch.num_frames)
            return torch.cat(pair, 1).float()

        text_ND, mel_ND = np.split(self._clips.measured(task.collator(), embed, alive), 2, axis=1)
        ranks = text_mel_ranks(text_ND, mel_ND, self._clips.texts)
        to_mel, to_text = (retrieval_metrics(ranks[direction]) for direction in DIRECTIONS)
        return {
            **{f"val/{name}": to_text[name] for name in _RANKS},
            **{f"val/text_to_mel/{name}": to_mel[name] for name in _RANKS},
        }


class ClipTTSValidation:
    """Errors of mels, with the alignment's own durations, and of predicted durations."""

    def __init__(self, index: ShardIndex, rows: np.ndarray):
        """`rows` are the clips. Raises PsclapError for fewer than two."""
        self._clips = _Clips(index, rows)

    def metrics(self, task: ClipTTSTask, alive: Callable[[], None]) -> dict[str, float]:
        """`val/mel_mae` in the logarithm of the mel's definition, `val/duration_mae` in frames; means over clips."""
        task.model.eval()

        def errors(batch: Batch) -> torch.Tensor:
            with torch.inference_mode():
                return _errors(task, batch.to(task.model.device))

        mel, duration = self._clips.measured(task.collator(), errors, alive).mean(0)
        return {"val/mel_mae": float(mel), "val/duration_mae": float(duration)}


def _errors(task: ClipTTSTask, batch: Batch) -> torch.Tensor:
    """(B, 2) mean absolute errors of mels and of durations."""
    model, voice = task.model, Voice(batch.speakers, batch.styles)
    durations_BL = model.align(batch.symbols, batch.num_symbols, batch.mel, batch.num_frames)
    lengths = (batch.symbols, batch.num_symbols, voice)
    mel_BFM = model.speak(*lengths, durations_BL=durations_BL).mel
    mel_B = (mel_BFM - batch.mel).abs().mean(-1).sum(1) / batch.num_frames
    mask_BL = length_mask(batch.num_symbols, batch.symbols.shape[1])
    predicted_BL = model.durations(*lengths)
    duration_B = ((predicted_BL - durations_BL).abs() * mask_BL).sum(1) / batch.num_symbols
    return torch.stack([mel_B, duration_B], 1)
