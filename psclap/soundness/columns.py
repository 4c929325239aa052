"""A data set's table as arrays: every text as a code into its distinct values, lists flattened to (row, value).

What is counted or looked for is then one NumPy call, whatever the number of clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from psclap.errors import PsclapError
from psclap.schema import INDEX_SCHEMA, METADATA_COLUMNS

TAG_COLUMNS = {
    "intrinsic": "intrinsic_tags",
    "situational": "situational_tags",
    "classification": "classification_tags",
}


@dataclass(frozen=True)
class Coded:
    """Texts by their distinct values: text number i is `values[codes[i]]`."""

    values: pa.Array
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def names(self) -> list[str]:
        """The distinct values as Python strings; for columns that have few."""
        return self.values.to_pylist()

    @cached_property
    def counts(self) -> np.ndarray:
        """(len(values),) how often each value occurs."""
        return np.bincount(self.codes, minlength=len(self.values))

    @cached_property
    def words(self) -> np.ndarray:
        """(len(values),) the words of each value."""
        split = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(self.values))
        return np.where(self.blank, 0, as_numpy(pc.list_value_length(split)))

    @cached_property
    def blank(self) -> np.ndarray:
        """(len(values),) whether a value is empty or only white space."""
        return as_numpy(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(self.values)), 0))

    def where(self, chosen: np.ndarray) -> Coded:
        """The texts of which `chosen` (len,) is true."""
        return Coded(self.values, self.codes[chosen])


@dataclass(frozen=True)
class Captions:
    """Every caption of every clip: the clip's row number, the set, the text."""

    rows: np.ndarray
    sets: Coded
    texts: Coded


class Columns:
    """The columns that a check looks at; a null counts as empty text, or as 0."""

    def __init__(self, table: pa.Table):
        """Takes the table of an index or of a manifest, whatever else it holds.

        Raises PsclapError for a table that lacks a column of every Utterance, or has one of another type.
        """
        missing = [name for name in METADATA_COLUMNS if name not in table.column_names]
        if missing:
            raise PsclapError(
                f"no table of utterances: the columns {', '.join(missing)} are missing; "
                "give an index.parquet or a utterances.parquet of this version"
            )
        self.table = pa.table({name: _typed(table, name) for name in INDEX_SCHEMA.names if name in table.column_names})
        self._coded = cache(self._encode)

    def __len__(self) -> int:
        return self.table.num_rows

    def __contains__(self, name: str) -> bool:
        return name in self.table.column_names

    def coded(self, name: str) -> Coded:
        """A column of texts."""
        return self._coded(name)

    def _encode(self, name: str) -> Coded:
        return encode(self.table[name])

    def numbers(self, name: str) -> np.ndarray:
        """(len,) a column of numbers."""
        return as_numpy(self.table[name])

    def examples(self, chosen: np.ndarray, limit: int) -> list[str]:
        """The keys of the first rows of which `chosen` (len,) is true."""
        return self.table["key"].take(pa.array(np.flatnonzero(chosen)[:limit])).to_pylist()

    def tags(self, level: str) -> Coded:
        """Every tag that a clip has at a level of TAG_COLUMNS."""
        return encode(pc.fill_null(pc.list_flatten(self.table[TAG_COLUMNS[level]]), ""))

    @cached_property
    def captions(self) -> Captions:
        """All captions, in the order of the rows."""
        column = self.table["captions"]
        lengths = as_numpy(pc.fill_null(pc.list_value_length(column), 0))
        flat = pc.list_flatten(column)
        sets, texts = (encode(pc.fill_null(pc.struct_field(flat, name), "")) for name in ("set", "text"))
        return Captions(np.repeat(np.arange(len(self)), lengths), sets, texts)

    @cached_property
    def speaker_ids(self) -> np.ndarray:
        """(len,) one number per speaker; the same name in two sources is two speakers."""
        source, speaker = self.coded("source"), self.coded("speaker")
        return source.codes.astype(np.int64) * max(len(speaker.values), 1) + speaker.codes


def _typed(table: pa.Table, name: str) -> pa.ChunkedArray:
    kind = INDEX_SCHEMA.field(name).type
    try:
        column = table[name].cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise PsclapError(f"column {name!r} is of type {table[name].type}, expected {kind}") from error
    if pa.types.is_list(kind):
        return column
    return pc.fill_null(column, "" if pa.types.is_string(kind) else 0)


def encode(column: pa.ChunkedArray) -> Coded:
    """Codes a column of texts; values are numbered by their first occurrence."""
    # Large strings: the distinct texts of one array may exceed the 2 GiB that a string array can hold.
    chunks = column.cast(pa.large_string()).dictionary_encode().unify_dictionaries().chunks
    if not chunks:
        return Coded(pa.array([], pa.large_string()), np.zeros(0, np.int32))
    return Coded(chunks[-1].dictionary, np.concatenate([as_numpy(chunk.indices) for chunk in chunks]))


def as_numpy(array: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """An Arrow array without nulls as NumPy's."""
    return array.to_numpy() if isinstance(array, pa.ChunkedArray) else array.to_numpy(zero_copy_only=False)


def distinct(numbers: np.ndarray) -> np.ndarray:
    """The distinct numbers, ascending. Sorts, which for millions of integers is many times faster than np.unique."""
    numbers = np.sort(numbers)
    return numbers[np.diff(numbers, prepend=numbers[:1] - 1) > 0]


def distinct_pairs(numbers: np.ndarray, group: Coded) -> tuple[np.ndarray, np.ndarray]:
    """The distinct pairs of a non-negative number and the code of the group beside it, as two arrays.

    >>> distinct_pairs(np.array([7, 7, 7]), Coded(pa.array(["train", "val"]), np.array([0, 1, 0])))
    (array([7, 7]), array([0, 1]))
    """
    size = max(len(group.values), 1)
    return np.divmod(distinct(numbers.astype(np.int64) * size + group.codes), size)
