"""How sure a metric is: the percentile bootstrap over the units that a test set was drawn in.

Queries are not independent of each other: a speaker's clips share the voice, and the captions of that voice. So what is
drawn with replacement are units, speakers as a rule, each with all of its queries (the cluster bootstrap: Davison and
Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). The candidates stay as they are: an interval says
how the metric would vary with other queries, against the same candidates. Nothing is ranked again.

Axes: N queries, G units, R resamples, U different outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from psclap.errors import PsclapError
from psclap.evaluation import RESAMPLES
from psclap.evaluation.outcomes import Outcome

LEVEL = 0.95
_COUNTS_BYTES = 32 * 2**20


def resampled(
    outcomes: Sequence[Outcome], unit_N: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """(R,) of every metric of each outcome; resample r draws the same units for all outcomes.

    `unit_N` numbers each query's unit from 0, without gaps. Outcomes are of the same queries.
    """
    rng, num_units = np.random.default_rng(seed), int(unit_N.max()) + 1
    largest = max(outcome.num_codes for outcome in outcomes)
    at_once = max(1, _COUNTS_BYTES // (8 * largest))
    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in outcomes]
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        counts = [np.empty((size, outcome.num_codes)) for outcome in outcomes]
        for row in range(size):
            times_G = np.bincount(rng.integers(num_units, size=num_units), minlength=num_units)
            times_N = times_G.astype(np.float64)[unit_N]
            for counts_RU, outcome in zip(counts, outcomes, strict=True):
                counts_RU[row] = np.bincount(outcome.codes, times_N, outcome.num_codes)
        for part, counts_RU, outcome in zip(parts, counts, outcomes, strict=True):
            part.append(outcome.metrics(counts_RU))
    return [{name: np.concatenate([chunk[name] for chunk in part]) for name in part[0]} for part in parts]


def intervals(
    outcome: Outcome, unit_N: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[float]]:
    """The interval [low, high] of every metric that holds LEVEL of the resamples, as much left out at either end."""
    (of_outcome,) = resampled([outcome], unit_N, resamples, seed)
    return {name: interval(values_R) for name, values_R in of_outcome.items()}


def interval(values_R: np.ndarray) -> list[float]:
    """[low, high] of the middle LEVEL of the values.

    >>> interval(np.arange(1001.0))
    [25.0, 975.0]
    """
    tail = 100 * (1 - LEVEL) / 2
    return [float(value) for value in np.percentile(values_R, [tail, 100 - tail])]


def p_value(differences_R: np.ndarray) -> float:
    """Two-sided: twice the share of resampled differences on the other side of zero; at least 2 / (R + 1).

    >>> p_value(np.array([0.2, 0.1, 0.3])), p_value(np.array([-0.1, 0.1, 0.0]))
    (0.5, 1.0)
    """
    differences_R = differences_R.round(12)  # equal means may differ in their last bit
    beyond = min((differences_R <= 0).sum(), (differences_R >= 0).sum())
    return float(min(1.0, 2 * (1 + beyond) / (len(differences_R) + 1)))


def check_resamples(resamples: int) -> int:
    """Returns the number. Raises PsclapError for too few to have a tail."""
    if resamples < 100:
        raise PsclapError(
            f"{resamples} resamples are too few for a 95 % interval; give 100 or more, such as {RESAMPLES}"
        )
    return resamples
