"""How a measured number stands between chance and perfect, judged by one rule for every attribute."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

STRONG = 0.75
WEAK = 0.1
SURE = 2.0
"""A score is strong from STRONG of the way from chance to perfect on, and near chance below WEAK of it, or within SURE
standard errors of chance.
"""

Strength = Literal["strong", "moderate", "near chance"]


@dataclass(frozen=True)
class Standing:
    """A score in [0, 1] of an attribute, what guessing scores, and the score's standard error."""

    name: str
    score: float
    chance: float
    error: float

    @property
    def strength(self) -> Strength:
        """By the thresholds above.

        >>> Standing("texture", 0.95, 0.25, 0.01).strength, Standing("rate", 0.39, 0.33, 0.03).strength
        ('strong', 'near chance')
        """
        gain = self.score - self.chance
        if gain < SURE * self.error or gain < WEAK * (1 - self.chance):
            return "near chance"
        return "strong" if gain >= STRONG * (1 - self.chance) else "moderate"


@dataclass(frozen=True)
class Confusion:
    """The candidate that an attribute's clips are most often mistaken for: its share of the clips of `actual`."""

    attribute: str
    actual: str
    predicted: str
    share: float


def attribute_standings(metrics: Mapping[str, Any], scored: Mapping[str, Any]) -> list[Standing]:
    """The UAR of each attribute. `metrics` is classification.json, `scored` the report's part of the same."""
    return [
        Standing(name, numbers["UAR"], numbers["chance_UAR"], uar_error(scored[name]["confusion"]))
        for name, numbers in metrics.items()
    ]


def uar_error(confusion: Sequence[Sequence[int]]) -> float:
    """The standard error of the mean of the classes' recalls, for clips that are independent of each other.

    >>> round(uar_error([[50, 50], [50, 50]]), 4)
    0.0354
    """
    counts = np.array(confusion, np.float64)
    totals = counts.sum(1)
    recalls = counts.diagonal() / totals
    return float(np.sqrt((recalls * (1 - recalls) / totals).sum()) / len(counts))


def is_above_chance(recall: float, chance: float, queries: int) -> bool:
    """Whether a recall lies more than SURE standard errors above chance.

    >>> is_above_chance(0.045, 0.042, 312), is_above_chance(0.85, 0.042, 312)
    (False, True)
    """
    return recall - chance > SURE * math.sqrt(recall * (1 - recall) / queries)


def worst_confusions(scored: Mapping[str, Any]) -> Iterator[Confusion]:
    """The most frequent mistake of each attribute, as a share of the clips of the candidate it is made about."""
    for attribute, scores in scored.items():
        counts = np.array(scores["confusion"], np.float64)
        shares = counts / counts.sum(1, keepdims=True)
        np.fill_diagonal(shares, 0)
        actual, predicted = np.unravel_index(shares.argmax(), shares.shape)
        candidates = scores["candidates"]
        yield Confusion(attribute, candidates[actual], candidates[predicted], float(shares[actual, predicted]))
