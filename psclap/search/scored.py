"""What the scoring job wrote, as a source of rows: OUTPUT/clips or OUTPUT/windows, in Parquet, and _summary.json.

The rows are those of the files in the order of their names. They are streamed: a few thousand are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from psclap import storage
from psclap.errors import PsclapError, first_line
from psclap.search.exact import MAX_NORM, Block, widened
from psclap.search.listing import WAY_OUT, Listing
from psclap.search.where import Where

EMBEDDING = "embedding"
_BATCH_ROWS = 8192


class ScoredOutput:
    """The clips, or the windows, of one output of the scoring job, local or at a URL. Knows exact blocks only."""

    def __init__(self, location: Path | str, windows: bool = False):
        """Reads the summary and the files' footers. Raises PsclapError where no scoring job wrote."""
        self.listing = Listing(location, windows)
        self._folder = self.listing.folder
        self._rows_of_groups, self._full_schema = self._read_footers()
        self.num_rows = sum(sum(groups) for groups in self._rows_of_groups.values())
        self.schema = pa.schema([field for field in self._full_schema if field.name != EMBEDDING])
        self.dim, self.dtype = self._check_embedding()

    @property
    def model(self) -> str:
        """The model that made the embeddings."""
        return self.listing.summary["model"]

    @property
    def weights_sha256(self) -> str:
        """The hash of its weights."""
        return self.listing.summary["weights_sha256"]

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows in order, some of their columns, a few thousand at a time."""
        for name, groups in self._rows_of_groups.items():
            with self._open(name) as file:
                yield from self._batches_of(file, name, range(len(groups)), columns)

    def blocks(self, where: Where | None = None) -> Iterator[Block]:
        """The rows that a filter selects, with their vectors."""
        start = 0
        for batch in self.batches([*(where.columns if where else []), EMBEDDING]):
            vectors = self.vectors(batch, start)
            rows = np.flatnonzero(where.mask(batch)) if where else np.arange(len(batch))
            yield start + rows, vectors[rows] if where else vectors
            start += len(batch)

    def vectors(self, batch: pa.RecordBatch, start: int) -> np.ndarray:
        """(B, D) the embeddings of a batch whose first row is `start`. Raises PsclapError for any that is none."""
        column = batch.column(EMBEDDING)
        flat = column.flatten()
        if column.null_count or flat.null_count:
            raise PsclapError(f"{storage.redacted(self._folder)} holds missing embeddings; score the corpus anew")
        vectors = flat.to_numpy().reshape(-1, self.dim).copy()
        is_unit = np.abs(np.linalg.norm(widened(vectors), axis=1) - 1) <= MAX_NORM - 1
        if not is_unit.all():
            row = start + int(np.flatnonzero(~is_unit)[0])
            raise PsclapError(
                f"{storage.redacted(self._folder)}: the embedding of row {row} is not of length 1; "
                "cosines need normalised embeddings, as the scoring job writes them"
            )
        return vectors

    def rows(self, numbers: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of some rows, in the order asked for; only the row groups that hold them are read."""
        if not columns:  # Parquet without columns has no rows either
            return [{} for _ in numbers]
        wanted = sorted({int(number) for number in numbers})
        found: dict[int, dict[str, Any]] = {}
        start = 0
        for name, groups in self._rows_of_groups.items():
            of_file = [number for number in wanted if start <= number < start + sum(groups)]
            if of_file:
                with self._open(name) as file:
                    found |= self._rows_of_file(file, name, start, of_file, columns)
            start += sum(groups)
        return [found[int(number)] for number in numbers]

    def _rows_of_file(
        self, file: pq.ParquetFile, name: str, start: int, numbers: list[int], columns: Sequence[str]
    ) -> dict[int, dict[str, Any]]:
        found = {}
        for group, num_rows in enumerate(self._rows_of_groups[name]):
            of_group = [number for number in numbers if start <= number < start + num_rows]
            at = start
            for batch in self._batches_of(file, name, [group], columns) if of_group else ():
                for number in of_group:
                    if at <= number < at + len(batch):
                        found[number] = {name: batch.column(name)[number - at].as_py() for name in columns}
                at += len(batch)
            start += num_rows
        return found

    def _batches_of(
        self, file: pq.ParquetFile, name: str, groups: Sequence[int], columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([self._full_schema.field(column) for column in columns])
        try:
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=list(groups), columns=list(columns)):
                arrays = [_plain(batch.column(column)) for column in columns]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(name, error) from error

    def _read_footers(self) -> tuple[dict[str, list[int]], pa.Schema]:
        """The rows of every row group by file, and the one schema of all."""
        rows, schema, first = {}, None, ""
        for name in self.listing.sizes:
            with self._open(name) as file:
                rows[name] = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                plain = pa.schema([(field.name, _plain_type(field.type)) for field in file.schema_arrow])
            if schema is None:
                schema, first = plain, name
            if plain != schema:
                raise PsclapError(
                    f"{storage.redacted(self._folder)}: {name} has other columns than {first}; they were written by "
                    "different jobs; score the corpus to a folder of its own"
                )
        return rows, schema

    def _check_embedding(self) -> tuple[int, np.dtype]:
        names = self._full_schema.names
        kind = self._full_schema.field(EMBEDDING).type if EMBEDDING in names else None
        if kind is None or not pa.types.is_fixed_size_list(kind) or kind.value_type not in (pa.float16(), pa.float32()):
            raise PsclapError(
                f"{storage.redacted(self._folder)} has no column {EMBEDDING!r} of fixed-size lists of float16 or "
                f"float32 ({kind or 'columns: ' + ', '.join(names)}); {WAY_OUT}"
            )
        return kind.list_size, np.dtype(kind.value_type.to_pandas_dtype())

    @contextmanager
    def _open(self, name: str) -> Iterator[pq.ParquetFile]:
        location = storage.join(self._folder, name)
        with storage.reaching(location):
            filesystem, path = storage.resolve(location)
            stream = filesystem.open(path, "rb")
        with stream:
            try:
                file = pq.ParquetFile(stream)
            except (OSError, pa.ArrowException) as error:
                raise self._damaged(name, error) from error
            yield file

    def _damaged(self, name: str, error: Exception) -> PsclapError:
        return PsclapError(
            f"{storage.redacted(storage.join(self._folder, name))} cannot be read ({first_line(error)}); "
            "remove the output and score the corpus anew"
        )


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
