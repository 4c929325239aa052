"""How each query of a test set came out, and the metrics of any sample of the queries.

Metrics depend on how often each different outcome occurs, and on nothing else. So a sample of the queries, drawn with
replacement, is a row of counts of outcomes, and the metrics of a thousand samples are a few matrix products.

Axes: N queries, U different outcomes, B samples, K candidates of a classification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from psclap import metrics
from psclap.metrics import RECALL_CUTOFFS, Ranks


class Outcome(Protocol):
    """The outcomes of a set of queries."""

    @property
    def codes(self) -> np.ndarray:
        """(N,) the number of each query's outcome."""

    @property
    def num_codes(self) -> int:
        """U."""

    def metrics(self, counts_BU: np.ndarray) -> dict[str, np.ndarray]:
        """(B,) of each metric, where sample b holds outcome u `counts_BU[b, u]` times."""


@dataclass(frozen=True, eq=False)
class Ranked:
    """Retrieval: each query's expected rank, and its chance of a right candidate among the first 1, 5 and 10."""

    expected: np.ndarray  # (N,)
    hits: np.ndarray  # (N, 3)

    @classmethod
    def of(cls, ranks: Ranks) -> Ranked:
        """From ranks; ties count by the mean over the orders that they leave open."""
        return cls(ranks.expected, np.stack([metrics.hits_at(ranks, k) for k in RECALL_CUTOFFS], axis=1))

    @classmethod
    def joined(cls, parts: Sequence[Ranked]) -> Ranked:
        """The queries of several sets as one."""
        return cls(np.concatenate([part.expected for part in parts]), np.concatenate([part.hits for part in parts]))

    def take(self, numbers: np.ndarray) -> Ranked:
        """Some of the queries, in this order."""
        return Ranked(self.expected[numbers], self.hits[numbers])

    @cached_property
    def _distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """The different outcomes by ascending rank, one a row, and the row of each query."""
        rows, codes = np.unique(np.column_stack([self.expected, self.hits]), axis=0, return_inverse=True)
        return rows, codes.ravel()

    @property
    def codes(self) -> np.ndarray:
        """(N,) the number of each query's outcome."""
        return self._distinct[1]

    @property
    def num_codes(self) -> int:
        """U."""
        return len(self._distinct[0])

    def metrics(self, counts_BU: np.ndarray) -> dict[str, np.ndarray]:
        """R@1, R@5, R@10, median and mean rank, MRR."""
        rank_U, hits_U3 = self._distinct[0][:, 0], self._distinct[0][:, 1:]
        total_B = counts_BU.sum(1)
        recalls_B3 = counts_BU @ hits_U3 / total_B[:, None]
        return {
            **{f"R@{k}": recalls_B3[:, place] for place, k in enumerate(RECALL_CUTOFFS)},
            "median_rank": _median(rank_U, counts_BU),
            "mean_rank": counts_BU @ rank_U / total_B,
            "MRR": counts_BU @ (1 / rank_U) / total_B,
        }


def _median(ascending_U: np.ndarray, counts_BU: np.ndarray) -> np.ndarray:
    """(B,) the median of each sample: the mean of its two middle values, which may be one."""
    up_to_BU = counts_BU.cumsum(1)
    total_B1 = up_to_BU[:, -1:]
    lower, upper = ((up_to_BU > place).argmax(1) for place in ((total_B1 - 1) // 2, total_B1 // 2))
    return (ascending_U[lower] + ascending_U[upper]) / 2


@dataclass(frozen=True, eq=False)
class Labelled:
    """Classification: the actual and the predicted candidate of each clip, as numbers of `candidates`."""

    candidates: tuple[str, ...]
    actual: np.ndarray  # (N,)
    predicted: np.ndarray  # (N,)

    def take(self, numbers: np.ndarray) -> Labelled:
        """Some of the clips, in this order."""
        return Labelled(self.candidates, self.actual[numbers], self.predicted[numbers])

    @cached_property
    def codes(self) -> np.ndarray:
        """(N,) the cell of the confusion matrix that each clip is in."""
        return self.actual * len(self.candidates) + self.predicted

    @property
    def num_codes(self) -> int:
        """K * K."""
        return len(self.candidates) ** 2

    @property
    def confusion(self) -> np.ndarray:
        """(K, K) counts, rows the actual candidate."""
        return metrics.confusion_matrix(self.actual, self.predicted, len(self.candidates))

    def metrics(self, counts_BU: np.ndarray) -> dict[str, np.ndarray]:
        """UAR and macro F1, each over the candidates that occur in the sample."""
        confusion_BKK = counts_BU.reshape(len(counts_BU), len(self.candidates), -1)
        return {
            "UAR": metrics.unweighted_average_recalls(confusion_BKK),
            "macro_F1": metrics.macro_f1s(confusion_BKK),
        }


def metrics_of(outcome: Outcome) -> dict[str, float]:
    """The metrics of the queries themselves."""
    counts_1U = np.bincount(outcome.codes, minlength=outcome.num_codes)[None]
    return {name: float(value) for name, (value,) in outcome.metrics(counts_1U).items()}
