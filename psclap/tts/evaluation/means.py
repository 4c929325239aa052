"""Means of measures that some clips lack, and how sure they are.

Axes: N values, B samples of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from psclap.evaluation import RESAMPLES
from psclap.evaluation.bootstrap import interval, resampled


@dataclass(frozen=True, eq=False)
class Measured:
    """An outcome (psclap/evaluation/outcomes.py) whose metrics are means; NaN is a value that there is none of."""

    values: Mapping[str, np.ndarray]  # (N,) of each measure

    @property
    def codes(self) -> np.ndarray:
        """(N,) each value is an outcome of its own."""
        return np.arange(self.num_codes)

    @property
    def num_codes(self) -> int:
        """N."""
        return len(next(iter(self.values.values())))

    def metrics(self, counts_BU: np.ndarray) -> dict[str, np.ndarray]:
        """(B,) the mean of each measure; NaN in a sample without a value."""
        return {name: _means(counts_BU, values_N) for name, values_N in self.values.items()}


def _means(counts_BU: np.ndarray, values_U: np.ndarray) -> np.ndarray:
    is_there = ~np.isnan(values_U)
    total_B = counts_BU @ is_there
    return np.where(total_B > 0, counts_BU @ np.where(is_there, values_U, 0) / np.maximum(total_B, 1), np.nan)


def means(
    values: Mapping[str, np.ndarray], unit_N: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The mean of each measure and their 95 % `intervals`, over the units (numbered without gaps) that values are of.

    A measure without any value is left out.

    >>> means({"x": np.array([1.0, 3.0, np.nan]), "y": np.full(3, np.nan)}, np.array([0, 1, 2]))["x"]
    2.0
    """
    there = {name: values_N for name, values_N in values.items() if not np.isnan(values_N).all()}
    if not there:
        return {"intervals": {}}
    (samples,) = resampled([Measured(there)], unit_N, resamples, seed)
    ends = {name: interval(samples_R[~np.isnan(samples_R)]) for name, samples_R in samples.items()}
    return {**{name: float(np.nanmean(values_N)) for name, values_N in there.items()}, "intervals": ends}
