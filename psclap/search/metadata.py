"""The metadata of an index: an Arrow file, memory-mapped, with few-valued strings as small numbers.

A column of strings, or of lists of strings, that has few distinct values (speakers, tags) is stored as a dictionary
and 16-bit numbers: it is several times smaller, and a filter compares numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psclap.search.scored import ScoredOutput
from psclap.search.where import Where

_MAX_DISTINCT = 2**15 - 1
_BATCH_ROWS = 1 << 16


class MetadataWriter:
    """Writes the metadata of a source's rows to `path`, batch after batch."""

    def __init__(self, path: Path, source: ScoredOutput):
        self._vocabularies = _vocabularies(source)
        fields = [(field.name, self._stored_type(field)) for field in source.schema]
        self._schema = pa.schema(fields)
        self._writer = pa.ipc.new_file(str(path), self._schema)
        self._pending: list[pa.RecordBatch] = []

    def _stored_type(self, field: pa.Field) -> pa.DataType:
        if field.name not in self._vocabularies:
            return field.type
        indexed = pa.dictionary(pa.int16(), pa.string())
        return pa.list_(indexed) if pa.types.is_list(field.type) else indexed

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds rows; `batch` may have other columns too."""
        arrays = [self._stored(batch.column(field.name), field) for field in self._schema]
        self._pending.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        if sum(map(len, self._pending)) >= _BATCH_ROWS:
            self._flush()

    def _stored(self, column: pa.Array, field: pa.Field) -> pa.Array:
        vocabulary = self._vocabularies.get(field.name)
        if vocabulary is None:
            return column
        values = column.flatten() if pa.types.is_list(column.type) else column
        numbers = pc.index_in(values, value_set=vocabulary).cast(pa.int16())
        encoded = pa.DictionaryArray.from_arrays(numbers, vocabulary)
        if not pa.types.is_list(column.type):
            return encoded
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), encoded, mask=pc.is_null(column)).cast(field.type)

    def _flush(self) -> None:
        for batch in pa.Table.from_batches(self._pending, self._schema).combine_chunks().to_batches():
            self._writer.write_batch(batch)
        self._pending = []

    def close(self) -> None:
        """Writes what is left."""
        self._flush()
        self._writer.close()


class Metadata:
    """The metadata of an index, opened: nothing of it is in memory until it is looked at."""

    def __init__(self, path: Path):
        """Raises OSError or pa.ArrowException for a file that is no whole Arrow file."""
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._ends = np.cumsum([len(batch) for batch in self._batches], dtype=np.int64)
        self.schema: pa.Schema = reader.schema
        self.num_rows = sum(map(len, self._batches))

    def selected(self, where: Where) -> np.ndarray:
        """(num_rows,) bool: which rows a filter selects."""
        masks = [where.mask(batch.select(where.columns)) for batch in self._batches]
        return np.concatenate([np.empty(0, bool), *masks])

    def rows(self, numbers: Iterable[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of some rows, in the order asked for."""
        return [self._row(int(number), columns) for number in numbers]

    def _row(self, number: int, columns: Sequence[str]) -> dict[str, Any]:
        batch = int(np.searchsorted(self._ends, number, side="right"))
        start = self._ends[batch] - len(self._batches[batch])
        row = self._batches[batch].slice(number - start, 1)
        return {name: row.column(name)[0].as_py() for name in columns}


def _vocabularies(source: ScoredOutput) -> dict[str, pa.Array]:
    """The distinct values of the columns that have few."""
    found = {
        field.name: pa.array([], pa.string())
        for field in source.schema
        if field.type in (pa.string(), pa.list_(pa.string()))
    }
    for batch in source.batches([*found]):
        for name in list(found):
            column = batch.column(name)
            values = column.flatten() if pa.types.is_list(column.type) else column
            merged = pa.concat_arrays([found[name], values.unique().drop_null()]).unique()
            if len(merged) > min(_MAX_DISTINCT, source.num_rows // 2):
                del found[name]
            else:
                found[name] = merged
    return found
