"""Metrics as pure functions of arrays.

Axes: Q queries, C candidates, K classes, N labelled items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RECALL_CUTOFFS = (1, 5, 10)


@dataclass(frozen=True)
class Ranks:
    """Where each query's first right candidate stands: how many wrong ones are above it, and how many tie."""

    above: np.ndarray  # (Q,)
    tied: np.ndarray  # (Q,) wrong candidates of equal score

    @property
    def expected(self) -> np.ndarray:
        """(Q,) ranks from 1, the mean over the orders that ties leave open."""
        return 1 + self.above + self.tied / 2


def ranks(scores_QC: np.ndarray, is_right_QC: np.ndarray) -> Ranks:
    """Ranks by counting; every query has at least one right candidate.

    >>> ranks(np.array([[0.9, 0.1, 0.9]]), np.array([[True, False, False]])).expected
    array([1.5])
    """
    best_Q1 = np.where(is_right_QC, scores_QC, -np.inf).max(1, keepdims=True)
    is_wrong_QC = ~is_right_QC
    return Ranks(above=((scores_QC > best_Q1) & is_wrong_QC).sum(1), tied=((scores_QC == best_Q1) & is_wrong_QC).sum(1))


def recall_at(ranks_: Ranks, k: int) -> float:
    """The share of queries with a right candidate among the first k, ties in random order.

    A tie counts by its chance, so a model that scores everything alike gets what guessing gets.

    >>> recall_at(Ranks(above=np.array([0, 3]), tied=np.array([0, 0])), 1)
    0.5
    """
    return float(np.clip((k - ranks_.above) / (ranks_.tied + 1), 0, 1).mean())


def retrieval_metrics(ranks_: Ranks) -> dict[str, float]:
    """R@1, R@5, R@10, median and mean rank, and the mean reciprocal rank."""
    expected = ranks_.expected
    return {
        **{f"R@{k}": recall_at(ranks_, k) for k in RECALL_CUTOFFS},
        "median_rank": float(np.median(expected)),
        "mean_rank": float(expected.mean()),
        "MRR": float((1 / expected).mean()),
    }


def chance_recall(num_right_Q: np.ndarray, num_candidates: int, k: int) -> float:
    """The recall at k of a random order, where query q has `num_right_Q[q]` right candidates.

    1 - C(wrong, k) / C(candidates, k), mean over the queries.

    >>> round(chance_recall(np.array([1]), 156, 10), 4)
    0.0641
    """
    wrong_Q = num_candidates - np.asarray(num_right_Q)
    all_wrong_Q = np.ones(len(wrong_Q))
    for drawn in range(min(k, num_candidates)):
        all_wrong_Q *= np.clip(wrong_Q - drawn, 0, None) / (num_candidates - drawn)
    return float(1 - all_wrong_Q.mean())


def confusion_matrix(actual_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) counts, rows the actual class.

    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    return np.bincount(actual_N * num_classes + predicted_N, minlength=num_classes**2).reshape(-1, num_classes)


def unweighted_average_recall(confusion_KK: np.ndarray) -> float:
    """UAR, also macro recall: the mean over the classes that occur of the share found.

    >>> unweighted_average_recall(np.array([[1, 0], [1, 1]]))
    0.75
    """
    support = confusion_KK.sum(1)
    occurs = support > 0
    return float((np.diag(confusion_KK)[occurs] / support[occurs]).mean())


def macro_f1(confusion_KK: np.ndarray) -> float:
    """The mean F1 over the classes that occur.

    >>> round(macro_f1(np.array([[1, 0], [1, 1]])), 4)
    0.6667
    """
    support, predicted = confusion_KK.sum(1), confusion_KK.sum(0)
    occurs = support > 0
    f1 = 2 * np.diag(confusion_KK)[occurs] / (support + predicted)[occurs]
    return float(f1.mean())
