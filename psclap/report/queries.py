"""How the queries of a retrieval set fared: the best, the worst, and what they find.

Axes: Q queries, C candidates, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from psclap.evaluation.retrieval import Direction, RetrievalSet
from psclap.metrics import Ranks
from psclap.pairs import Pairs
from psclap.ranking import ranks_both_ways

_COMPARED = 200
"""So many queries of the best ranks, and of the worst, are compared by their margins: 200 x C scores."""


@dataclass(frozen=True)
class Side:
    """One direction of a retrieval set: what asks, what there is to find, and how it was found."""

    queries: np.ndarray  # (Q, D), L2-normalised
    candidates: np.ndarray  # (C, D), L2-normalised
    right: Pairs  # which candidates are right for which query
    ranks: Ranks

    def scores(self, query: int) -> np.ndarray:
        """(C,) cosines of one query."""
        return self.candidates @ self.queries[query]


@dataclass(frozen=True)
class Found:
    """A candidate that a query found."""

    number: int
    score: float
    is_right: bool


def sides(test_set: RetrievalSet, speech_ND: np.ndarray, text_MD: np.ndarray) -> Mapping[Direction, Side]:
    """Both directions of a retrieval set by name, from L2-normalised embeddings of its clips and captions.

    Raises PsclapError for embeddings that are not finite.
    """
    right = test_set.right
    of_speech, of_text = ranks_both_ways(speech_ND, text_MD, right)
    return {
        "audio_to_text": Side(speech_ND, text_MD, right, of_speech),
        "text_to_audio": Side(text_MD, speech_ND, right.transposed, of_text),
    }


def find(side: Side, query: int, top: int) -> list[Found]:
    """The `top` candidates of the highest scores for one query, best first; of equal ones the first."""
    scores = side.scores(query)
    right = {*side.right.of_query(query).tolist()}
    best = np.argsort(-scores, kind="stable")[:top].tolist()
    return [Found(number, float(scores[number]), number in right) for number in best]


def best_right(side: Side, query: int) -> Found:
    """The right candidate of the highest score for one query."""
    right = side.right.of_query(query)
    scores = side.candidates[right] @ side.queries[query]
    best = int(scores.argmax())
    return Found(int(right[best]), float(scores[best]), True)


def best_and_worst(side: Side, number: int) -> tuple[list[int], list[int]]:
    """At most `number` of the best queries of a side, best first, and as many of the others, worst first.

    By rank and, where ranks are equal, by how far the best right candidate is above the best wrong one. No two
    queries of a list have the same right candidates, so that it is not one answer many times.
    """
    by_rank = np.argsort(side.ranks.expected, kind="stable").tolist()
    best = _distinct(side, _by_margin(side, by_rank[:_COMPARED]), number)
    others = [query for query in by_rank if query not in best]
    return best, _distinct(side, reversed(_by_margin(side, others[-_COMPARED:])), number)


def _by_margin(side: Side, queries: Sequence[int]) -> list[int]:
    margins = _margins(side, queries)
    order = np.lexsort((-margins, side.ranks.expected[queries]))
    return [queries[place] for place in order]


def _margins(side: Side, queries: Sequence[int]) -> np.ndarray:
    """How far each query's best right candidate is above its best wrong one."""
    scores_QC = side.queries[queries] @ side.candidates.T
    margins = []
    for query, scores in zip(queries, scores_QC, strict=True):
        right = side.right.of_query(query)
        best = scores[right].max()
        scores[right] = -1.0  # the least cosine
        margins.append(best - scores.max())
    return np.array(margins)


def _distinct(side: Side, queries: Iterable[int], number: int) -> list[int]:
    chosen: dict[tuple[int, ...], int] = {}
    for query in queries:
        chosen.setdefault(tuple(side.right.of_query(query).tolist()), query)
        if len(chosen) == number:
            break
    return list(chosen.values())
