"""Metrics as pure functions of arrays.

Axes: Q queries, C candidates, K classes, N labelled items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psclap.errors import PsclapError

RECALL_CUTOFFS = (1, 5, 10)


@dataclass(frozen=True)
class Ranks:
    """Where each query's best right candidate stands: how many wrong ones are above it, and how many tie with it.

    `right` counts the right candidates of that score, itself among them.
    """

    above: np.ndarray  # (Q,)
    tied: np.ndarray  # (Q,)
    right: np.ndarray  # (Q,)

    @property
    def expected(self) -> np.ndarray:
        """(Q,) ranks from 1 of the first right candidate, the mean over the orders that ties leave open.

        Of t wrong and r right candidates in random order, t / (r + 1) wrong ones precede the first right one.
        """
        return 1 + self.above + self.tied / (self.right + 1)


def check_finite(scores: np.ndarray) -> None:
    """Raises PsclapError for scores that hold NaN or infinity."""
    if not np.isfinite(scores).all():
        raise PsclapError(
            "the model's scores are not finite: its weights have diverged; lower the learning rate or set max_grad_norm"
        )


def nearest(scores_NK: np.ndarray) -> np.ndarray:
    """(N,) the column of each row's highest score, the first where several are equal.

    Raises PsclapError for scores that are not finite.

    >>> nearest(np.array([[0.1, 0.9], [0.4, 0.2]])).tolist()
    [1, 0]
    """
    check_finite(scores_NK)
    return scores_NK.argmax(1)


def hits_at(ranks_: Ranks, k: int) -> np.ndarray:
    """(Q,) the chance of each query that a right candidate is among the first k, ties in random order.

    >>> hits_at(Ranks(above=np.array([0, 0]), tied=np.array([0, 1]), right=np.array([1, 1])), 1).tolist()
    [1.0, 0.5]
    """
    return 1 - _chance_of_none(ranks_.right, ranks_.right + ranks_.tied, k - ranks_.above)


def recall_at(ranks_: Ranks, k: int) -> float:
    """The share of queries with a right candidate among the first k, ties in random order.

    A tie counts by its chance, so a model that scores everything alike gets what guessing gets.

    >>> recall_at(Ranks(above=np.array([0, 3]), tied=np.array([0, 0]), right=np.array([1, 1])), 1)
    0.5
    """
    return float(hits_at(ranks_, k).mean())


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
    right_Q = np.asarray(num_right_Q)
    return float(1 - _chance_of_none(right_Q, np.full(len(right_Q), num_candidates), np.full(len(right_Q), k)).mean())


def _chance_of_none(right_Q: np.ndarray, total_Q: np.ndarray, draws_Q: np.ndarray) -> np.ndarray:
    """(Q,) the chance that `draws` of `total` candidates, without replacement, hold none of the `right` ones."""
    chance_Q = np.ones(len(right_Q))
    for drawn in range(max(0, int(draws_Q.max(initial=0)))):
        left_Q = np.maximum(total_Q - drawn, 1)
        wrong_Q = np.maximum(total_Q - right_Q - drawn, 0)
        chance_Q *= np.where(drawn < draws_Q, wrong_Q / left_Q, 1.0)
    return chance_Q


def confusion_matrix(actual_N: np.ndarray, predicted_N: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) counts, rows the actual class.

    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    return np.bincount(actual_N * num_classes + predicted_N, minlength=num_classes**2).reshape(-1, num_classes)


def tag_recalls(confusion_KK: np.ndarray) -> np.ndarray:
    """(..., K) the share found of each class, NaN where it does not occur; of (..., K, K) confusion matrices.

    >>> tag_recalls(np.array([[1, 0], [1, 1]])).tolist()
    [1.0, 0.5]
    """
    support = confusion_KK.sum(-1)
    return np.where(support > 0, np.diagonal(confusion_KK, axis1=-2, axis2=-1) / np.maximum(support, 1), np.nan)


def unweighted_average_recall(confusion_KK: np.ndarray) -> float:
    """UAR, also macro recall: the mean over the classes that occur of the share found.

    >>> unweighted_average_recall(np.array([[1, 0], [1, 1]]))
    0.75
    """
    return float(unweighted_average_recalls(confusion_KK))


def unweighted_average_recalls(confusion_KK: np.ndarray) -> np.ndarray:
    """(...,) the UAR of each of (..., K, K) confusion matrices."""
    return np.nanmean(tag_recalls(confusion_KK), -1)


def macro_f1(confusion_KK: np.ndarray) -> float:
    """The mean F1 over the classes that occur.

    >>> round(macro_f1(np.array([[1, 0], [1, 1]])), 4)
    0.6667
    """
    return float(macro_f1s(confusion_KK))


def macro_f1s(confusion_KK: np.ndarray) -> np.ndarray:
    """(...,) the macro F1 of each of (..., K, K) confusion matrices."""
    support, predicted = confusion_KK.sum(-1), confusion_KK.sum(-2)
    found = np.diagonal(confusion_KK, axis1=-2, axis2=-1)
    return np.nanmean(np.where(support > 0, 2 * found / np.maximum(support + predicted, 1), np.nan), -1)
