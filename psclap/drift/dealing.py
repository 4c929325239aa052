"""What chance alone gives: the clips of both data sets are dealt again at random, and compared as the data were.

Clips of one speaker resemble each other, so whole speakers (units) are dealt, not clips: each unit's place in either
data set, with its number of clips, is filled by another unit. That is a permutation test of clusters (Good,
Permutation, Parametric and Bootstrap Tests of Hypotheses, 2005): exact for units of one size, and so for single
clips. A place that is smaller than its unit takes some of its clips; one that is larger takes them several times,
which makes chance look larger than it is, never smaller.

Axes: N clips of the reference and then of the new data, U units, R deals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_DEALS_AT_ONCE = 64


@dataclass(frozen=True)
class Units:
    """The units of both data sets: those of the reference first. Clip `order[i]` is of the unit that holds place i."""

    order: np.ndarray
    start: np.ndarray
    size: np.ndarray
    in_reference: int

    @classmethod
    def of(cls, reference: np.ndarray, new: np.ndarray, rng: np.random.Generator) -> Units:
        """From the unit's number of every clip of both; the same number in both stands for two units.

        One speaker's clips in both are dealt as two speakers': again chance looks larger than it is.
        """
        numbers = np.concatenate([reference, new + reference.max() + 1])
        _, unit_N, size_U = np.unique(numbers, return_inverse=True, return_counts=True)
        order = np.lexsort((rng.random(len(unit_N)), unit_N))
        return cls(order, np.cumsum(size_U) - size_U, size_U, len(reference))

    def deal(self, rng: np.random.Generator) -> np.ndarray:
        """(N,) which clip fills each place; the first `in_reference` places are the reference's."""
        slot_N = np.repeat(np.arange(len(self.size)), self.size)
        offset_N = np.arange(len(self.order)) - self.start[slot_N]
        unit_N = rng.permutation(len(self.size))[slot_N]
        first_N = rng.integers(self.size)[unit_N]
        return self.order[self.start[unit_N] + (first_N + offset_N) % self.size[unit_N]]


def means_as_dealt(
    columns: np.ndarray, units: Units, deals: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(1 + deals, K) twice: the means of `columns` (N, K) over the reference's places, and over the new.

    Row 0 is as it is, the others as dealt.
    """
    split = units.in_reference
    reference, new = [columns[:split].mean(0)[None]], [columns[split:].mean(0)[None]]
    for done in range(0, deals, _DEALS_AT_ONCE):
        dealt = [units.deal(rng) for _ in range(min(_DEALS_AT_ONCE, deals - done))]
        reference.append(_means(columns, [clips[:split] for clips in dealt]))
        new.append(_means(columns, [clips[split:] for clips in dealt]))
    return np.concatenate(reference), np.concatenate(new)


def _means(columns: np.ndarray, chosen: Sequence[np.ndarray]) -> np.ndarray:
    """(len(chosen), K) means over the chosen clips, as one product of matrices."""
    times = np.stack([np.bincount(clips, minlength=len(columns)) for clips in chosen]).astype(np.float32)
    return times @ columns / len(chosen[0])


def p_values(observed: np.ndarray, dealt: np.ndarray) -> np.ndarray:
    """(K,) how often a deal is as large as what is observed (K,), of `dealt` (R, K); at least 1 / (R + 1).

    >>> p_values(np.array([3.0, 1.0]), np.array([[1.0, 2.0], [2.0, 1.0], [2.5, 0.0]]))
    array([0.25, 0.75])
    """
    as_large = (dealt >= observed - 1e-6).sum(0)  # float32 sums of the same clips differ in their last bits
    return (1 + as_large) / (len(dealt) + 1)


def joint_p_values(values: np.ndarray) -> np.ndarray:
    """(K,) how often the largest of K values of a deal stands out as much as each in row 0 of `values` (1 + deals, K).

    Each value stands out by its column's mean and standard deviation. If nothing drifts, the smallest p-value is below
    0.01 in one of 100 comparisons, however many values there are: the single-step maxT of Westfall and Young
    (Resampling-Based Multiple Testing, 1993).
    """
    standing_out = (values - values.mean(0)) / (values.std(0) + 1e-6)
    return p_values(standing_out[0], standing_out[1:].max(1, keepdims=True))
