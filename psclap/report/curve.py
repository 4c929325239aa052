"""The rank curve of a retrieval set: recall at k over k, in both directions, beside that of a random order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from psclap import metrics
from psclap.evaluation.retrieval import Direction
from psclap.report.queries import Side

_MAX_K = 100
_NUM_CUTOFFS = 40
_NAMES: dict[Direction, str] = {"audio_to_text": "speech to caption", "text_to_audio": "caption to speech"}
_TICKS = (1, 2, 5, 10, 20, 50, 100)
_LEFT, _TOP, _WIDTH, _HEIGHT = 34.0, 10.0, 296.0, 176.0  # of the plot's inside, in units of the drawing


@dataclass(frozen=True)
class Line:
    """A line of the drawing; `points` as SVG's polyline takes them."""

    direction: Direction
    kind: str  # "model" or "chance"
    points: str


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where it stands, along its axis, and what it says."""

    place: float
    label: str


@dataclass(frozen=True)
class Drawing:
    """A rank curve to draw: lines, ticks, and the same in words."""

    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    words: str


def rank_curve(sides: Mapping[Direction, Side]) -> Drawing:
    """The drawing for both directions; k on a logarithmic axis, to 100 at most."""
    lines, words = [], []
    last = max(2, min(_MAX_K, max(len(side.candidates) for side in sides.values())))
    for direction, side in sides.items():
        cutoffs = _cutoffs(min(last, len(side.candidates)))
        recalls = [metrics.recall_at(side.ranks, k) for k in cutoffs]
        guesses = [_chance(side, k) for k in cutoffs]
        lines.append(Line(direction, "chance", _points(cutoffs, guesses, last)))
        lines.append(Line(direction, "model", _points(cutoffs, recalls, last)))
        words.append(_words(direction, cutoffs, recalls))
    return Drawing(
        lines=sorted(lines, key=lambda line: line.kind),  # the model's over those of chance
        x_ticks=[Tick(_x(k, last), str(k)) for k in _TICKS if k <= last],
        y_ticks=[Tick(_y(share), f"{100 * share:.0f} %") for share in (0, 0.25, 0.5, 0.75, 1)],
        words=" ".join(words),
    )


def _cutoffs(last: int) -> list[int]:
    """Whole numbers from 1 to `last`, evenly spread over a logarithmic axis, the ticks among them."""
    spread = {round(k) for k in np.geomspace(1, last, _NUM_CUTOFFS).tolist()}
    return sorted(spread | {k for k in _TICKS if k <= last})


def _chance(side: Side, k: int) -> float:
    """As `metrics.chance_recall`; queries of as many right candidates are counted together."""
    numbers, counts = np.unique(side.right.counts, return_counts=True)
    recalls = [metrics.chance_recall(np.array([number]), len(side.candidates), k) for number in numbers]
    return float(np.average(recalls, weights=counts))


def _points(cutoffs: Sequence[int], shares: Sequence[float], last: int) -> str:
    return " ".join(f"{_x(k, last):.1f},{_y(share):.1f}" for k, share in zip(cutoffs, shares, strict=True))


def _x(k: int, last: int) -> float:
    return _LEFT + _WIDTH * math.log(k) / math.log(last)


def _y(share: float) -> float:
    return _TOP + _HEIGHT * (1 - share)


def _words(direction: Direction, cutoffs: Sequence[int], recalls: Sequence[float]) -> str:
    shown = [f"{100 * recalls[cutoffs.index(k)]:.0f} % at {k}" for k in _TICKS if k in cutoffs]
    return f"Recall from {_NAMES[direction]}: {', '.join(shown)}."
