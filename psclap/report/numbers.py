"""Evaluation results as the rows and cells of the page's tables.

`results` are as psclap/evaluation/report.py takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psclap.evaluation.report import kinds
from psclap.evaluation.retrieval import Direction
from psclap.metrics import RECALL_CUTOFFS

_SHARES = tuple(f"R@{k}" for k in RECALL_CUTOFFS)
COLUMNS = (*_SHARES, "median", "MRR")


@dataclass(frozen=True)
class Cell:
    """A number as it is shown, and its confidence interval where there is one."""

    text: str
    interval: str = ""


@dataclass(frozen=True)
class Row:
    """One kind of model in a table."""

    kind: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Tag:
    """How one tag of an attribute was told from the others."""

    name: str
    count: int
    recall: float  # nan where no clip carries it
    predicted: Sequence[tuple[int, float]]  # how many clips of it were taken for each tag, and which share


@dataclass(frozen=True)
class Attribute:
    """Zero-shot classification of one attribute."""

    name: str
    uar: Cell
    macro_f1: Cell
    beside: Mapping[str, Cell]  # the UAR of prompt ensembles, of untrained, and of chance, where there are
    tags: Sequence[Tag]
    count: int


def retrieval_rows(results: Mapping[str, Any], caption_set: str, direction: Direction) -> list[Row]:
    """A row for each kind of model: recalls in %, median rank and MRR."""
    return [Row(kind, retrieval_cells(results[kind]["retrieval"][caption_set][direction])) for kind in kinds(results)]


def retrieval_cells(scores: Mapping[str, Any]) -> list[Cell]:
    """The cells of COLUMNS."""
    return [
        *(cell(scores, key, 100, 1) for key in _SHARES),
        cell(scores, "median_rank", 1, 1),
        cell(scores, "MRR", 1, 2),
    ]


def cell(scores: Mapping[str, Any], key: str, factor: float, digits: int) -> Cell:
    """A score times a factor, beside its interval where `scores["intervals"]` has one; a dash where there is none.

    >>> cell({"R@1": 0.5, "intervals": {"R@1": [0.25, 0.75]}}, "R@1", 100, 1)
    Cell(text='50.0', interval='25.0–75.0')
    """
    if key not in scores:
        return Cell("–")
    ends = [f"{factor * end:.{digits}f}" for end in scores.get("intervals", {}).get(key, [])]
    return Cell(f"{factor * scores[key]:.{digits}f}", "–".join(ends))


def attributes(results: Mapping[str, Any]) -> list[Attribute]:
    """The classification of each attribute, in the order of the results."""
    return [_attribute(results, name, scores) for name, scores in results["model"]["classification"].items()]


def _attribute(results: Mapping[str, Any], name: str, scores: Mapping[str, Any]) -> Attribute:
    confusion = zip(scores["candidates"], scores["confusion"], strict=True)
    tags = [_tag(tag, counts, place) for place, (tag, counts) in enumerate(confusion)]
    beside = {"ensemble": scores["ensemble"]} if "ensemble" in scores else {}
    beside |= {kind: results[kind]["classification"][name] for kind in kinds(results) if kind != "model"}
    return Attribute(
        name=name,
        uar=cell(scores, "UAR", 100, 1),
        macro_f1=cell(scores, "macro_F1", 100, 1),
        beside={kind: cell(of_kind, "UAR", 100, 1) for kind, of_kind in beside.items()},
        tags=tags,
        count=sum(tag.count for tag in tags),
    )


def _tag(name: str, counts: Sequence[int], place: int) -> Tag:
    total = sum(counts)
    shares = [count / total if total else 0.0 for count in counts]
    return Tag(name, total, shares[place] if total else float("nan"), [*zip(counts, shares, strict=True)])


@dataclass(frozen=True)
class Composition:
    """How often the right combination of k attributes is found first: a row of cells by k."""

    columns: Sequence[str]
    rows: Mapping[str, Sequence[Cell]]


def composition(results: Mapping[str, Any], direction: Direction) -> Composition | None:
    """The table of one direction; None where the results hold no composition."""
    of_model = results["model"].get("composition", {})
    if not of_model:
        return None
    told = any("independent_R@1" in of_k[direction] for of_k in of_model.values())
    chance = results.get("chance", {}).get("composition", {})
    rows = {}
    for k, of_k in of_model.items():
        scores = of_k[direction]
        independent = [cell(scores, "independent_R@1", 100, 1)] if told else []
        guess = cell(chance.get(k, {}).get(direction, {}), "R@1", 100, 1)
        rows[k] = [cell(scores, "candidates", 1, 0), cell(scores, "R@1", 100, 1), *independent, guess]
    return Composition(["candidates", "R@1", *(["independent"] if told else []), "chance"], rows)


def has_intervals(results: Mapping[str, Any]) -> bool:
    """Whether confidence intervals stand beside the model's numbers."""
    groups = [group for of_set in results["model"]["retrieval"].values() for group in of_set.values()]
    return any("intervals" in group for group in [*groups, *results["model"]["classification"].values()])
