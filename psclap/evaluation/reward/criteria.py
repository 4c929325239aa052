"""What a reward prefers: weights of cosines and of columns, and gates; and whether prompts can be ranked by it."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psclap.errors import PsclapError
from psclap.evaluation.reward.prompts import Prompt

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_GATE = re.compile(r"\s*(?P<column>[^<>=]*[^<>=\s])\s*(?P<comparison><=|>=|<|>)\s*(?P<bound>[^<>=\s]+)\s*")


@dataclass(frozen=True)
class Gate:
    """A bound on a column of the candidates; a candidate without a value is not within it."""

    column: str
    comparison: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """From its text. Raises PsclapError for another form.

        >>> Gate.parse("wer<=0.1")
        Gate(column='wer', comparison='<=', bound=0.1)
        """
        match = _GATE.fullmatch(text)
        bound = _number(match["bound"]) if match else None
        if match is None or bound is None:
            raise PsclapError(f"gate {text!r} must be a column, one of <= >= < > and a number, such as wer<=0.1")
        return cls(match["column"], match["comparison"], bound)

    def holds(self, columns: Mapping[str, Any]) -> bool:
        """Whether a candidate of these columns is within the gate."""
        value = value_of(columns, self.column)
        return value is not None and _COMPARISONS[self.comparison](value, self.bound)

    def __str__(self) -> str:
        return f"{self.column}{self.comparison}{self.bound:g}"


def parse_addend(text: str) -> tuple[str, float]:
    """A column and its weight. Raises PsclapError for another form.

    >>> parse_addend("wer:-0.5")
    ('wer', -0.5)
    """
    column, _, weight = text.rpartition(":")
    number = _number(weight)
    if not column or number is None:
        raise PsclapError(f"addend {text!r} must be a column, a colon and a number, such as wer:-0.5")
    return column, number


@dataclass(frozen=True)
class Reward:
    """What is preferred: the weights of the two cosines and of columns, and the gates."""

    text_weight: float = 1.0
    reference_weight: float = 1.0
    add: Mapping[str, float] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()

    def __post_init__(self) -> None:
        weights = {"text_weight": self.text_weight, "reference_weight": self.reference_weight, **self.add}
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise PsclapError(f"the weight {weight} of {name} must be a finite number")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the candidates that it goes by."""
        return tuple(dict.fromkeys([*self.add, *(gate.column for gate in self.gates)]))


def value_of(columns: Mapping[str, Any], name: str) -> float | None:
    """The number in a column, where there is one."""
    value = columns.get(name)
    return None if value is None else float(value)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def check(prompts: Sequence[Prompt], reward: Reward) -> None:
    """Raises PsclapError for a prompt that the reward has nothing to say of, and as `check_column` for its columns."""
    for prompt in prompts:
        text, reference = bool(prompt.text and reward.text_weight), bool(prompt.reference and reward.reference_weight)
        if not (text or reference or reward.add):
            raise PsclapError(
                f"prompt {prompt.id!r} has nothing to be ranked by: it has {'a' if prompt.text else 'no'} text (weight "
                f"{reward.text_weight:g}) and {'a' if prompt.reference else 'no'} reference (weight "
                f"{reward.reference_weight:g}); raise a weight, or add a column"
            )
    for name in reward.columns:
        check_column(prompts, name)


def check_column(prompts: Sequence[Prompt], name: str) -> None:
    """Raises PsclapError for a column that no candidate has, and for a value in it that is neither number nor null."""
    known: dict[str, None] = {}
    for prompt in prompts:
        for candidate in prompt.candidates:
            known |= dict.fromkeys(candidate.columns)
            value = candidate.columns.get(name)
            if value is not None and not _is_number(value):
                raise PsclapError(
                    f"prompt {prompt.id!r}, {candidate.name}: {name} {value!r} must be a finite number, or null"
                )
    if prompts and name not in known:
        raise PsclapError(f"no candidate has a column {name!r}; their columns: {', '.join(known) or 'none'}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
