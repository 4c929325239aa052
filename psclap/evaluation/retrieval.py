"""Retrieval over de-duplicated captions, in both directions.

Axes: N clips, M distinct captions, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from psclap import metrics
from psclap.schema import CaptionSet, Split
from psclap.shards.index import ShardIndex


@dataclass(frozen=True)
class RetrievalSet:
    """The clips of a test set, its distinct captions, and which caption is right for which clip."""

    rows: np.ndarray  # (N,) of the index
    captions: Sequence[str]  # M
    is_right: np.ndarray  # (N, M) bool

    @classmethod
    def of(cls, index: ShardIndex, split: Split, caption_set: CaptionSet) -> RetrievalSet:
        """The test set of one split and caption set."""
        view = index.view(split, caption_set)
        rows, of_clip = view.rows, index.captions(view).to_pylist()
        captions = sorted({text for texts in of_clip for text in texts})
        number_of = {text: number for number, text in enumerate(captions)}
        is_right = np.zeros((len(rows), len(captions)), bool)
        for clip, texts in enumerate(of_clip):
            is_right[clip, [number_of[text] for text in texts]] = True
        return cls(rows, captions, is_right)


def retrieval(speech_ND: np.ndarray, text_MD: np.ndarray, is_right_NM: np.ndarray) -> dict[str, Any]:
    """Metrics of L2-normalised embeddings: `audio_to_text` and `text_to_audio`, each as `retrieval_metrics`."""
    scores_NM = speech_ND @ text_MD.T
    return {
        "audio_to_text": metrics.retrieval_metrics(metrics.ranks(scores_NM, is_right_NM)),
        "text_to_audio": metrics.retrieval_metrics(metrics.ranks(scores_NM.T, is_right_NM.T)),
    }


def chance(is_right_NM: np.ndarray) -> dict[str, Any]:
    """The recalls of a random order, in both directions."""
    return {
        direction: {
            f"R@{k}": metrics.chance_recall(is_right.sum(1), is_right.shape[1], k) for k in metrics.RECALL_CUTOFFS
        }
        for direction, is_right in {"audio_to_text": is_right_NM, "text_to_audio": is_right_NM.T}.items()
    }
