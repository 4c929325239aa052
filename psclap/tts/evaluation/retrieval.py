"""Retrieval of a text by its sound and of a sound by its text, among the clips of a test set.

Clips that say the same are right for each other. Axes: N clips, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from psclap import metrics
from psclap.errors import PsclapError
from psclap.evaluation import RESAMPLES
from psclap.evaluation.bootstrap import intervals
from psclap.evaluation.outcomes import Ranked
from psclap.pairs import Pairs
from psclap.ranking import Ranks, ranks_both_ways

DIRECTIONS = ("text_to_mel", "mel_to_text")


def text_mel_retrieval(
    text_ND: np.ndarray, mel_ND: np.ndarray, texts: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """R@1, R@5, R@10, ranks and MRR by cosine, both ways, with 95 % intervals over the texts; and `chance`.

    Row n of either array is the embedding of clip n, and `texts[n]` is what it says. There are no intervals where
    `resamples` is 0. Raises PsclapError for fewer than two different texts, for arrays that do not fit, and for
    embeddings that are not finite.

    >>> found = text_mel_retrieval(np.eye(4), np.eye(4)[[0, 1, 3, 2]], ["a", "b", "c", "d"])
    >>> found["text_to_mel"]["R@1"], found["chance"]["text_to_mel"]["R@1"]
    (0.5, 0.25)
    """
    unit_N = _units(text_ND, mel_ND, texts)
    right = _same(unit_N)
    both = text_mel_ranks(text_ND, mel_ND, texts)
    chance = {f"R@{k}": metrics.chance_recall(right.counts, len(texts), k) for k in metrics.RECALL_CUTOFFS}
    return {
        **{
            direction: {
                **metrics.retrieval_metrics(ranks),
                **({"intervals": intervals(Ranked.of(ranks), unit_N, resamples, seed)} if resamples else {}),
            }
            for direction, ranks in both.items()
        },
        "chance": dict.fromkeys(DIRECTIONS, chance),
    }


def text_mel_ranks(text_ND: np.ndarray, mel_ND: np.ndarray, texts: Sequence[str]) -> dict[str, Ranks]:
    """The ranks by direction; arguments and errors as `text_mel_retrieval`."""
    right = _same(_units(text_ND, mel_ND, texts))
    return dict(zip(DIRECTIONS, ranks_both_ways(_normalised(text_ND), _normalised(mel_ND), right), strict=True))


def _units(text_ND: np.ndarray, mel_ND: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """(N,) the number of each clip's text."""
    if text_ND.shape != mel_ND.shape or len(text_ND) != len(texts):
        raise PsclapError(
            f"embeddings of shape {text_ND.shape} and {mel_ND.shape} for {len(texts)} texts; each text has one of both"
        )
    number_of = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    if len(number_of) < 2:
        raise PsclapError(f"retrieval among {len(number_of)} different texts says nothing; give two or more")
    return np.array([number_of[text] for text in texts])


def _same(unit_N: np.ndarray) -> Pairs:
    """Which clips are of the same unit: each with itself, at least."""
    order = np.argsort(unit_N, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(unit_N))[:-1])
    queries = np.concatenate([np.repeat(group, len(group)) for group in groups])
    candidates = np.concatenate([np.tile(group, len(group)) for group in groups])
    return Pairs.of(queries, candidates, len(unit_N), len(unit_N))


def _normalised(embedding_ND: np.ndarray) -> np.ndarray:
    """Of length 1; a vector of zeros stays one, and is as near to each as to any."""
    wide_ND = embedding_ND.astype(np.float64)
    return wide_ND / np.maximum(np.linalg.norm(wide_ND, axis=1, keepdims=True), 1e-30)
