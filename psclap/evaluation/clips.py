"""The clips of a test set: their keys, what they are labelled with, and the units that they were drawn in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from psclap.errors import PsclapError
from psclap.evaluation.classification import ClassificationSet
from psclap.evaluation.retrieval import RetrievalSet
from psclap.pairs import Pairs
from psclap.shards.index import ShardIndex

Unit = Literal["speaker", "clip"]

MIN_SPEAKERS = 10
"""Of fewer, a resample of speakers says little; clips are drawn then, though they are not independent."""


@dataclass(frozen=True, eq=False)
class Clips:
    """Some clips of an index, by their rows."""

    rows: np.ndarray  # (N,), ascending
    keys: Sequence[str]
    tags: Sequence[set[str]]
    unit: Unit  # what resamples draw
    unit_names: Sequence[str]  # N: the unit that each clip is of
    _prints: Sequence[str]  # N: what tells a clip from another of its key

    @classmethod
    def of(cls, index: ShardIndex, rows: np.ndarray, unit: Unit | None = None) -> Clips:
        """The clips of some rows; their units are speakers where there are MIN_SPEAKERS, if it is not said.

        Raises PsclapError where units are to be speakers and there are fewer than two.
        """
        columns = ["key", "source", "speaker", "intrinsic_tags", "situational_tags", "num_samples", "byte_length"]
        clips = index.take(rows, columns).to_pylist()
        keys = [clip["key"] for clip in clips]
        speakers = [f"{clip['source']}/{clip['speaker']}" for clip in clips]  # a name in two sources is two speakers
        unit = _unit(len({*speakers}), unit)
        return cls(
            rows=rows,
            keys=keys,
            tags=[{*clip["intrinsic_tags"], *clip["situational_tags"]} for clip in clips],
            unit=unit,
            unit_names=speakers if unit == "speaker" else keys,
            _prints=[f"{clip['key']}\t{clip['num_samples']}\t{clip['byte_length']}" for clip in clips],
        )

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of rows of the index among these clips."""
        return np.searchsorted(self.rows, rows)

    def keys_of(self, rows: np.ndarray) -> list[str]:
        """The keys of rows of the index."""
        return [self.keys[number] for number in self.numbers(rows)]

    def units_of(self, rows: np.ndarray) -> list[str]:
        """The units of rows of the index."""
        return [self.unit_names[number] for number in self.numbers(rows)]

    def units_of_texts(self, texts: Sequence[str], right: Pairs, rows: np.ndarray) -> list[str]:
        """A text is of the unit of its clips; one that clips of several units have is a unit of its own.

        `right` says which of the clips `rows` each text has.
        """
        names = self.units_of(rows)
        of_texts = ({names[clip] for clip in right.of_query(number)} for number in range(len(right)))
        return [units.pop() if len(units) == 1 else text for units, text in zip(of_texts, texts, strict=True)]

    def fingerprint(self, test_set: RetrievalSet | ClassificationSet) -> str:
        """The hash of a test set: its clips with their sizes, in any order, its candidates, and which are right."""
        prints = [self._prints[number] for number in self.numbers(test_set.rows)]
        if isinstance(test_set, ClassificationSet):
            candidates, right = test_set.candidates, [[number] for number in test_set.actual.tolist()]
        else:
            candidates = tuple(test_set.captions)
            right = [test_set.right.of_query(number).tolist() for number in range(len(prints))]
        content = [candidates, sorted(zip(prints, right, strict=True))]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _unit(num_speakers: int, unit: Unit | None) -> Unit:
    if unit == "speaker" and num_speakers < 2:
        raise PsclapError("all clips are of one speaker, so speakers cannot be resampled; resample clips")
    return unit or ("speaker" if num_speakers >= MIN_SPEAKERS else "clip")
