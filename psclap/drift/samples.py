"""What is compared of a data set: a random sample of its clips, and of each what is measured.

The sample bounds memory and time. Of more clips than it holds, the shares are right to about 0.01, far below what
counts as drift, and what chance gives is told for the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psclap.drift.result import Side
from psclap.errors import PsclapError
from psclap.schema import METADATA_COLUMNS
from psclap.scoring.block import tag_column
from psclap.search.scored import EMBEDDING, ScoredOutput
from psclap.search.where import Where
from psclap.shards.index import ShardIndex
from psclap.storage import redacted

CLIPS = 10_000
"""So many clips of each data set are compared, or all where there are fewer."""

CLIP, SPEAKER = "clip", "speaker"
_DURATION, _SCORES = "duration_s", "scores"


@dataclass(frozen=True)
class Sample:
    """Some clips (C,): the number of each one's unit, and what is measured, by kind and name.

    `embeddings` is (C, D); `tags` are the sets of labels.
    """

    side: Side
    unit: np.ndarray
    numbers: dict[tuple[str, str], np.ndarray]
    words: dict[tuple[str, str], list[str | None]] = field(default_factory=dict)
    embeddings: np.ndarray | None = None
    tags: Sequence[frozenset[str]] = ()


def of_scores(source: ScoredOutput, unit: str, where: str | None, seed: int) -> Sample:
    """A sample of an output of the scoring job. Raises PsclapError where it lacks a column, or has no clips."""
    summary, location = source.listing.summary, redacted(source.listing.location)
    captions, attributes = summary.get("captions", []), summary.get("attributes", [])
    names = [_DURATION, *map(tag_column, attributes), *[_SCORES] * bool(captions), *[unit] * (unit != CLIP)]
    if missing := [name for name in names if name not in source.schema.names]:
        raise PsclapError(f"{location} has no column {', '.join(missing)}; there are {', '.join(source.schema.names)}")
    rows = np.arange(source.num_rows) if where is None else _selected(source, where)
    chosen = _chosen(rows, location + (f" where {where}" if where else ""), seed)
    table = _rows(source, [*dict.fromkeys([*names, EMBEDDING])], chosen)
    scores = table[_SCORES] if captions else None
    rejects = sum(summary.get("rejects", {}).values()) if where is None else None
    units = _units(table[unit] if unit != CLIP else None, len(chosen))
    return Sample(
        Side(location, len(rows), len(chosen), len(np.unique(units)), where, rejects),
        units,
        numbers={
            **{("score", name): _numbers(pc.struct_field(scores, [at])) for at, name in enumerate(captions)},
            ("duration", _DURATION): _numbers(table[_DURATION]),
        },
        words={("tag", name): table[tag_column(name)].to_pylist() for name in attributes},
        embeddings=_vectors(table[EMBEDDING], source.dim),
    )


def of_index(index: ShardIndex, location: str, unit: str, split: str | None, seed: int) -> Sample:
    """A sample of the clips of an index, or of one split of it: durations, and which tags each clip has."""
    rows = np.arange(len(index))
    if split:
        rows = np.flatnonzero(np.array(index.column("split").to_pylist(), object) == split)
    chosen = _chosen(rows, location + (f", split {split}" if split else ""), seed)
    tags = [_taken(index, name, chosen).to_pylist() for name in ("intrinsic_tags", "situational_tags")]
    units = _units(_taken(index, unit, chosen) if unit != CLIP else None, len(chosen))
    return Sample(
        Side(redacted(location), len(rows), len(chosen), len(np.unique(units)), split and f"split = '{split}'"),
        units,
        numbers={("duration", _DURATION): index.num_samples[chosen] / index.sample_rate_hz},
        tags=[
            frozenset(intrinsic or ()) | frozenset(situational or ())
            for intrinsic, situational in zip(*tags, strict=True)
        ],
    )


def _taken(index: ShardIndex, name: str, rows: np.ndarray) -> pa.Array:
    if name not in METADATA_COLUMNS:
        raise PsclapError(f"an index has no column {name!r}; there are {', '.join(METADATA_COLUMNS)}")
    return index.column(name).take(pa.array(rows))


def _selected(source: ScoredOutput, where: str) -> np.ndarray:
    """The rows that a filter selects."""
    condition = Where(where, source.schema)
    masks = [condition.mask(batch) for batch in source.batches(condition.columns)]
    return np.flatnonzero(np.concatenate([np.empty(0, bool), *masks]))


def _chosen(rows: np.ndarray, what: str, seed: int) -> np.ndarray:
    """CLIPS of the rows, in order, or all."""
    if not len(rows):
        raise PsclapError(f"{redacted(what)} has no clips to compare")
    if len(rows) <= CLIPS:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, CLIPS, replace=False))


def _rows(source: ScoredOutput, names: Sequence[str], rows: np.ndarray) -> pa.Table:
    """Some columns of some rows, which are in order; a few thousand others are in memory at a time."""
    start, parts = 0, []
    for batch in source.batches(names):
        first, last = np.searchsorted(rows, [start, start + len(batch)])
        source.vectors(batch, start)  # refuses embeddings that are missing or not normalised
        parts.append(batch.take(pa.array(rows[first:last] - start)))
        start += len(batch)
    return pa.Table.from_batches(parts)


def _vectors(column: pa.ChunkedArray, dim: int) -> np.ndarray:
    """(C, D) float32."""
    return column.combine_chunks().flatten().to_numpy().reshape(-1, dim).astype(np.float32)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """(C,) float64, NaN for what is missing."""
    return column.cast(pa.float64()).to_numpy()


def _units(names: pa.Array | pa.ChunkedArray | None, clips: int) -> np.ndarray:
    """(C,) numbers, equal for equal names; a clip without a name is a unit of its own."""
    if names is None:
        return np.arange(clips)
    texts = [str(name) if name not in (None, "") else None for name in names.to_pylist()]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(texts))}
    return np.array([clips + row if name is None else numbers[name] for row, name in enumerate(texts)])
