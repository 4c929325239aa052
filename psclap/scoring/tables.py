"""The tables of a scoring job: clips, windows and rejects, a Parquet file of each for a block of the input.

A block counts as done when its file of clips is there, which is written last; each file appears whole or not at all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from psclap import storage

CLIPS, WINDOWS, REJECTS = "clips", "windows", "rejects"
_STATISTICS = b"psclap.block"
_READERS = 16

REJECTS_SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "audio", "reason", "detail")])


@dataclass(frozen=True)
class Statistics:
    """What came of one block, or of several: `rejects` by reason, and what types the model computed in."""

    clips: int = 0
    windows: int = 0
    audio_s: float = 0.0
    rejects: Mapping[str, int] = field(default_factory=dict)
    computed_in: Sequence[str] = ()

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.clips + other.clips,
            self.windows + other.windows,
            self.audio_s + other.audio_s,
            dict(sorted((Counter(self.rejects) + Counter(other.rejects)).items())),
            sorted({*self.computed_in, *other.computed_in}),
        )

    @property
    def rejected(self) -> int:
        """All rejects."""
        return sum(self.rejects.values())


@dataclass(frozen=True)
class Scored:
    """The tables of one block."""

    clips: pa.Table
    windows: pa.Table
    rejects: pa.Table
    statistics: Statistics


def write(output: str, number: int, scored: Scored) -> None:
    """Commits a block. Whatever an attempt before it left, its own files are there and no others."""
    statistics = json.dumps(asdict(scored.statistics)).encode()
    clips = scored.clips.replace_schema_metadata({_STATISTICS: statistics})
    for name, table in ((WINDOWS, scored.windows), (REJECTS, scored.rejects), (CLIPS, clips)):
        if not len(table) and name != CLIPS:
            storage.remove(path(output, name, number))
            continue
        with storage.writing(path(output, name, number)) as partial:
            pq.write_table(table, partial)


def path(output: str, table: str, number: int) -> str:
    """Where a block's part of a table lies."""
    return storage.join(output, f"{table}/part-{number:06d}.parquet")


def done_blocks(output: str) -> list[int]:
    """The numbers of the blocks that are committed, ascending."""
    names = storage.sizes(storage.join(output, CLIPS))
    return sorted(
        int(name.removeprefix("part-").removesuffix(".parquet"))
        for name in names
        if name.startswith("part-") and name.endswith(".parquet")
    )


def statistics_of(output: str, numbers: Sequence[int]) -> Statistics:
    """The sum over committed blocks, from the footers of their files."""
    with ThreadPoolExecutor(_READERS) as threads:
        return sum(threads.map(lambda number: _statistics(path(output, CLIPS, number)), numbers), Statistics())


def committed(output: str, number: int) -> Statistics | None:
    """What came of a block, where it is committed."""
    try:
        return _statistics(path(output, CLIPS, number))
    except FileNotFoundError:
        return None


def _statistics(location: str) -> Statistics:
    with storage.reaching(location):
        filesystem, name = storage.resolve(location)
        with filesystem.open(name, "rb") as stream:
            return Statistics(**json.loads(pq.read_schema(stream).metadata[_STATISTICS]))


def embedding_column(embeddings_ND: np.ndarray, kind: str) -> pa.FixedSizeListArray:
    """(N, D) as a fixed-size list of float16 or float32."""
    values = pa.array(embeddings_ND.astype(kind).ravel())
    return pa.FixedSizeListArray.from_arrays(values, embeddings_ND.shape[1])


def words_column(words: Iterable[str]) -> pa.DictionaryArray:
    """Words of few kinds."""
    return pa.array(words, pa.string()).dictionary_encode()


def rejects_table(rows: Iterator[Mapping[str, str]]) -> pa.Table:
    """A row for each clip that could not be scored, with the reason."""
    return pa.Table.from_pylist([*rows], REJECTS_SCHEMA)
