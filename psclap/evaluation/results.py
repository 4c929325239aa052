"""What an evaluation found: as numbers that JSON can hold, and query by query."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from psclap.evaluation import RESAMPLES
from psclap.evaluation.bootstrap import intervals
from psclap.evaluation.classification import ClassificationSet, summarise
from psclap.evaluation.clips import Clips
from psclap.evaluation.composition import CompositionSet
from psclap.evaluation.outcomes import Labelled, Ranked, metrics_of
from psclap.evaluation.queries import QuerySet, numbered, to_table
from psclap.evaluation.retrieval import DIRECTIONS, Direction, RetrievalSet


class Sets(Protocol):
    """The test sets that results are of."""

    @property
    def retrieval(self) -> dict[str, RetrievalSet]:
        """By caption set."""

    @property
    def classification(self) -> list[ClassificationSet]:
        """One for each attribute."""

    @property
    def composition(self) -> dict[int, list[CompositionSet]]:
        """By the number of attributes."""

    @property
    def clips(self) -> Clips:
        """All of them."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """How the queries of all test sets came out; `composition` has one entry for each set of k attributes."""

    retrieval: dict[str, dict[Direction, Ranked]] = field(default_factory=dict)
    classification: dict[str, Labelled] = field(default_factory=dict)
    ensembles: dict[str, Labelled] = field(default_factory=dict)
    composition: dict[int, list[dict[Direction, Ranked]]] = field(default_factory=dict)


class Evaluation:
    """One model on the test sets."""

    def __init__(self, test_sets: Sets, outcomes: Outcomes):
        self._sets, self._outcomes = test_sets, outcomes

    @cached_property
    def results(self) -> dict[str, Any]:
        """Metrics: `retrieval` by caption set and direction, `classification` by attribute, `composition` by number.

        `composition`, and of an attribute `ensemble`, are there where the test sets have them.
        """
        of_all = self._outcomes
        results: dict[str, Any] = {
            "retrieval": {
                name: {d: metrics_of(of_set[d]) | self._sizes(name, d) for d in DIRECTIONS}
                for name, of_set in of_all.retrieval.items()
            },
            "classification": {
                name: {"candidates": list(outcome.candidates), **summarise(outcome)}
                for name, outcome in of_all.classification.items()
            },
        }
        for name, outcome in of_all.ensembles.items():
            results["classification"][name]["ensemble"] = summarise(outcome)
        if of_all.composition:
            results["composition"] = {str(k): self._composition(k) for k in of_all.composition}
        return results

    def _sizes(self, name: str, direction: Direction) -> dict[str, int]:
        right = self._sets.retrieval[name].by_direction()[direction]
        return {"queries": len(right), "candidates": right.num_candidates}

    def _composition(self, k: int) -> dict[str, Any]:
        sets, outcomes = self._sets.composition[k], self._outcomes.composition[k]
        of_k: dict[str, Any] = {"attributes": [list(of_set.attributes) for of_set in sets]}
        for direction in DIRECTIONS:
            right = [of_set.by_direction()[direction] for of_set in sets]
            of_k[direction] = {
                "R@1": metrics_of(Ranked.joined([outcome[direction] for outcome in outcomes]))["R@1"],
                "queries": sum(map(len, right)),
                "candidates": float(np.average([r.num_candidates for r in right], weights=[len(r) for r in right])),
            }
        of_k["audio_to_text"]["independent_R@1"] = self._independent(sets)
        return of_k

    def _independent(self, sets: Sequence[CompositionSet]) -> float:
        """What R@1 would be if each attribute were told as it is alone, independently of the others."""
        alone = {
            of_set.attributes[0]: metrics_of(outcome["audio_to_text"])["R@1"]
            for of_set, outcome in zip(self._sets.composition[1], self._outcomes.composition[1], strict=True)
        }
        products = [np.prod([alone.get(name, 1.0) for name in of_set.attributes]) for of_set in sets]
        return float(np.average(products, weights=[len(of_set.rows) for of_set in sets]))

    def with_intervals(self, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
        """`results`, each group of metrics with its `intervals`: {metric: [low, high]}."""
        results = copy.deepcopy(self.results)
        for of_set in self.query_sets:
            group = of_set.group_in(results)
            found = intervals(of_set.outcome, numbered(of_set.units), resamples, seed)
            group["intervals"] = {name: ends for name, ends in found.items() if name in group}
        return results

    @property
    def queries(self) -> pa.Table:
        """One row per query, see psclap.evaluation.queries."""
        return to_table(self.query_sets)

    @cached_property
    def query_sets(self) -> list[QuerySet]:
        """The queries of every test set and direction."""
        return [*self._of_retrieval(), *self._of_classification(), *self._of_composition()]

    def _of_retrieval(self) -> Iterator[QuerySet]:
        clips = self._sets.clips
        for name, outcomes in self._outcomes.retrieval.items():
            test_set = self._sets.retrieval[name]
            queries = {"audio_to_text": clips.keys_of(test_set.rows), "text_to_audio": test_set.captions}
            of_captions = clips.units_of_texts(test_set.captions, test_set.right.transposed, test_set.rows)
            units = {"audio_to_text": clips.units_of(test_set.rows), "text_to_audio": of_captions}
            for direction in DIRECTIONS:
                yield QuerySet("retrieval", name, direction, queries[direction], units[direction], outcomes[direction])

    def _of_classification(self) -> Iterator[QuerySet]:
        clips = self._sets.clips
        kinds: Mapping[str, dict[str, Labelled]] = {
            "classification": self._outcomes.classification,
            "classification_ensemble": self._outcomes.ensembles,
        }
        for kind, outcomes in kinds.items():
            for test_set in self._sets.classification:
                name, rows = test_set.attribute, test_set.rows
                if name in outcomes:
                    keys, units = clips.keys_of(rows), clips.units_of(rows)
                    yield QuerySet(kind, name, "audio_to_text", keys, units, outcomes[name])

    def _of_composition(self) -> Iterator[QuerySet]:
        for k, outcomes in self._outcomes.composition.items():
            for direction in DIRECTIONS:
                joined = Ranked.joined([outcome[direction] for outcome in outcomes])
                named = [self._named(of_set, direction) for of_set in self._sets.composition[k]]
                queries, units = ([name for part in parts for name in part] for parts in zip(*named, strict=True))
                yield QuerySet("composition", str(k), direction, queries, units, joined)

    def _named(self, of_set: CompositionSet, direction: Direction) -> tuple[list[str], list[str]]:
        """The queries of a set of attributes, and their units."""
        clips = self._sets.clips
        if direction == "text_to_audio":
            asked = [of_set.combinations[number] for number in of_set.asked]
            return asked, clips.units_of_texts(asked, of_set.by_direction()[direction], of_set.rows)
        of_clips = [of_set.combinations[number] for number in of_set.right.numbers]
        keys = [f"{key}: {tags}" for key, tags in zip(clips.keys_of(of_set.rows), of_clips, strict=True)]
        return keys, clips.units_of(of_set.rows)
