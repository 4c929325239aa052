"""Every query of an evaluation and how it came out, as a table that metrics, intervals and comparisons start from.

One row per query of each test set and direction, in the order of the test set:

    kind            retrieval, classification, classification_ensemble, composition
    set             the caption set, the attribute, or the number of attributes
    direction       audio_to_text or text_to_audio
    query           the clip's key (composition: with the tags that were asked for), the caption, or the combination
    unit            what resamples draw: the speaker or the clip, see psclap.evaluation.clips
    expected_rank   from 1, of the first right candidate, the mean over ties; null for classification
    hit_at_1/5/10   the chance that a right candidate is among the first 1, 5, 10; null for classification
    actual          the tag that the clip is labelled with; null but for classification
    predicted       and the one that it is taken for
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psclap.evaluation.outcomes import Labelled, Ranked
from psclap.evaluation.retrieval import Direction
from psclap.metrics import RECALL_CUTOFFS

_NAMES = ("kind", "set", "direction")
_HITS = tuple(f"hit_at_{k}" for k in RECALL_CUTOFFS)
_TAGS = ("actual", "predicted")

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in (*_NAMES, "query", "unit")),
        *((name, pa.float64()) for name in ("expected_rank", *_HITS)),
        *((name, pa.string()) for name in _TAGS),
    ]
)


@dataclass(frozen=True, eq=False)
class QuerySet:
    """The queries of one test set and direction, the unit that each is of, and how they came out."""

    kind: str
    name: str
    direction: Direction
    queries: Sequence[str]
    units: Sequence[str]
    outcome: Ranked | Labelled

    @property
    def place(self) -> tuple[str, str, str]:
        """What tells it from the others of an evaluation."""
        return self.kind, self.name, self.direction

    def in_order(self) -> QuerySet:
        """The same by the order of the queries' names: that of clips depends on how they were put into shards."""
        order = np.array(sorted(range(len(self.queries)), key=self.queries.__getitem__))
        queries, units = ([names[number] for number in order] for names in (self.queries, self.units))
        return replace(self, queries=queries, units=units, outcome=self.outcome.take(order))

    def group_in(self, results: dict[str, Any]) -> dict[str, Any]:
        """The part of the results (of Evaluation) that these queries make."""
        if self.kind == "classification":
            return results["classification"][self.name]
        if self.kind == "classification_ensemble":
            return results["classification"][self.name]["ensemble"]
        return results[self.kind][self.name][self.direction]


def numbered(names: Sequence[str]) -> np.ndarray:
    """(N,) names as numbers from 0, without gaps; the same name has the same number in any order of the names."""
    return np.unique(np.array(names, np.dtypes.StringDType()), return_inverse=True)[1]


def to_table(query_sets: Sequence[QuerySet]) -> pa.Table:
    """The table of query sets."""
    return pa.concat_tables([SCHEMA.empty_table(), *map(_table, query_sets)])


def _table(of_set: QuerySet) -> pa.Table:
    size, outcome = len(of_set.queries), of_set.outcome
    columns: dict[str, Any] = {name: pa.repeat(value, size) for name, value in zip(_NAMES, of_set.place, strict=True)}
    columns |= {"query": of_set.queries, "unit": of_set.units}
    if isinstance(outcome, Ranked):
        columns |= {"expected_rank": outcome.expected, **dict(zip(_HITS, outcome.hits.T, strict=True))}
    else:
        names = pa.array(outcome.candidates)
        columns |= {
            "actual": names.take(pa.array(outcome.actual)),
            "predicted": names.take(pa.array(outcome.predicted)),
        }
    return pa.table({field.name: columns.get(field.name, pa.nulls(size)) for field in SCHEMA}).cast(SCHEMA)


def from_table(table: pa.Table) -> Iterator[QuerySet]:
    """The query sets that a table was made from, in its order."""
    place = pc.binary_join_element_wise(*(table[name].cast(pa.string()) for name in _NAMES), "/")
    for each in pc.unique(place):
        rows = table.filter(pc.equal(place, each))
        kind, name, direction = (rows[name][0].as_py() for name in _NAMES)
        yield QuerySet(kind, name, direction, rows["query"].to_pylist(), rows["unit"].to_pylist(), _outcome(rows))


def _outcome(rows: pa.Table) -> Ranked | Labelled:
    if rows["actual"].null_count:
        hits = np.column_stack([rows[name].to_numpy() for name in _HITS])
        return Ranked(rows["expected_rank"].to_numpy(), hits)
    actual, predicted = (rows[name].to_pylist() for name in _TAGS)
    candidates = tuple(sorted({*actual, *predicted}))
    number_of = {tag: number for number, tag in enumerate(candidates)}
    return Labelled(candidates, *(np.array([number_of[tag] for tag in tags]) for tags in (actual, predicted)))
