"""What a comparison found, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from psclap.strict import flatten

LEVEL = 0.01
"""How often equal data are taken for drifted, over all measures together."""

THRESHOLD = 0.2
"""The headline above which data have drifted. A normal score moves so much when its mean shifts by half of its
standard deviation, which makes a population stability index of 0.25, by custom a large one.
"""

_NAME = 150  # characters; MLflow takes 250


@dataclass(frozen=True)
class Side:
    """One of the two data sets: `compared` of its `clips` are in the numbers.

    `where` is the filter that chose the clips; `rejects` are what scoring left out, None where that is not known.
    """

    location: str
    clips: int
    compared: int
    units: int
    where: str | None = None
    rejects: int | None = None


@dataclass(frozen=True)
class Change:
    """The share of clips in one bin. `by_chance`: 95 % of deals change it by less."""

    bin: str
    reference: float
    new: float
    change: float
    by_chance: float


@dataclass(frozen=True)
class Measured:
    """A measure's distances. `by_chance` and `psi_by_chance` are what equal distributions give, in the mean.

    `moved`: share of the new clips that would have to be in another bin; `p_value` is of all measures together.
    """

    name: str
    kind: str
    moved: float
    by_chance: float
    p_value: float
    psi: float
    psi_by_chance: float
    changes: Sequence[Change]
    mean_reference: float | None = None
    mean_new: float | None = None

    @property
    def title(self) -> str:
        """Kind and name."""
        return f"{self.kind} {self.name}"

    @property
    def beyond_chance(self) -> float:
        """What has moved and chance does not explain."""
        return max(0.0, self.moved - self.by_chance)


@dataclass(frozen=True)
class Number:
    """A number that is told and decides nothing; `p_value` is of itself alone."""

    name: str
    reference: float
    new: float
    by_chance: float  # the mean absolute difference of equal distributions
    p_value: float


@dataclass(frozen=True)
class Drift:
    """A comparison of new data with a reference; `unit` is what was dealt to know what chance gives."""

    what: str  # scores or labels
    reference: Side
    new: Side
    model: str | None
    weights_sha256: str | None
    unit: str
    measured: Sequence[Measured]
    numbers: Sequence[Number]
    deals: int
    seed: int
    level: float = LEVEL
    threshold: float = THRESHOLD

    @property
    def once_in(self) -> int:
        """Of so many comparisons of equal data, one shows drift."""
        return round(1 / self.level)

    @property
    def can_tell(self) -> bool:
        """Whether there are units enough for a p-value as low as `level`: one speaker is like any other by chance."""
        units = self.reference.units, self.new.units
        return math.comb(sum(units), units[1]) >= 1 / self.level

    @property
    def worst(self) -> Measured | None:
        """The measure that has moved most, of those whose p-value is at most `level`; None where none is."""
        sure = [one for one in self.measured if one.p_value <= self.level]
        return max(sure, key=lambda one: one.beyond_chance, default=None)

    @property
    def headline(self) -> float:
        """In [0, 1]: what has moved beyond chance in the worst measure; 0 where chance explains everything."""
        return self.worst.beyond_chance if self.worst else 0.0

    @property
    def drifted(self) -> bool:
        """The rule: whether the headline is above the threshold."""
        return self.headline > self.threshold

    def metrics(self) -> dict[str, float]:
        """What a tracker logs, by names with slashes; long captions are cut, and numbered where they are then alike."""
        measured: dict[str, dict[str, float]] = {}
        for number, one in enumerate(self.measured):
            name = f"{one.kind}/{one.name[:_NAME]}"
            numbers = {"moved": one.moved, "by_chance": one.by_chance, "p_value": one.p_value}
            measured[name if name not in measured else f"{name} {number}"] = numbers
        return {"drift/headline": self.headline, "drift/drifted": float(self.drifted)} | flatten(
            {"drift": measured | {one.name: one.new - one.reference for one in self.numbers}}, "/"
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        worst = self.worst.title if self.worst else None
        told = {"drifted": self.drifted, "headline": self.headline, "worst": worst, "can_tell": self.can_tell}
        return told | asdict(self)
