"""Manifests: CSV, JSON lines or Parquet with a row per clip, beside the audio or anywhere that fsspec reaches.

Rows are read one after another, whatever the size of the file. A column is used where it bears our own name for
it, or where `columns` maps our name to it.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from psclap.corpora.keys import check_key, safe_key
from psclap.corpora.locations import expand, folder_of, open_binary, suffix_of
from psclap.corpora.record import FIELDS, Record, RecordOptions
from psclap.errors import ConfigError, PsclapError
from psclap.schema import Utterance
from psclap.storage import is_remote, join

_COLUMNS = ("key", "audio", *FIELDS)
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (*_DELIMITERS, ".jsonl", ".parquet")

Row = tuple[str, Mapping[str, Any]]
"""Where a row stands, for messages, and its values by column."""


@dataclass(frozen=True, kw_only=True)
class Manifest(RecordOptions):
    """Where the manifest and the audio lie, and what the columns mean; docs/corpora.md explains each option."""

    path: str
    audio_root: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    list_separator: str = "|"
    delimiter: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.columns if name not in _COLUMNS]
        if unknown:
            raise ConfigError(f"columns: {unknown} must be among our names {', '.join(_COLUMNS)}")
        if suffix_of(self.path) not in _SUFFIXES:
            raise ConfigError(f"path: {self.path!r} must end in one of {', '.join(_SUFFIXES)}")
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ConfigError(f"delimiter: {self.delimiter!r} must be one character")

    def utterances(self, folder: Path, processes: int | None) -> Iterator[Utterance]:
        """Yields an utterance per row; the audio itself is read when it is sharded.

        Raises PsclapError that names the file, the line and the value of the first row that breaks a rule.
        """
        for file in expand(self.path, "corpus.options.path"):
            with open_binary(file) as stream:
                columns, rows = self._read(stream, file)
                names = self._names(columns, file)
                audio_root = self._audio_root(file)
                records = (self._record(row, names, audio_root, file) for row in rows)
                yield from self.from_records(records, names)

    def _read(self, stream: BinaryIO, file: str) -> tuple[list[str], Iterable[Row]]:
        suffix = suffix_of(file)
        if suffix == ".parquet":
            return self._read_parquet(stream, file)
        if suffix == ".jsonl":
            return _read_jsonl(stream, file)
        return _read_csv(stream, file, self.delimiter or _DELIMITERS[suffix])

    def _read_parquet(self, stream: BinaryIO, file: str) -> tuple[list[str], Iterable[Row]]:
        try:
            parquet = pq.ParquetFile(stream)
        except pa.ArrowInvalid as error:
            raise PsclapError(f"{file} is no readable parquet file: {error}") from error
        columns = parquet.schema_arrow.names
        wanted = {*_COLUMNS, *self.columns.values(), *self.label_names()}
        return columns, _parquet_rows(parquet, [name for name in columns if name in wanted], file)

    def _names(self, columns: list[str], file: str) -> dict[str, str]:
        """Our names to the file's, for the columns that it has."""
        if len(set(columns)) != len(columns):
            raise PsclapError(f"{file} has columns of the same name: {columns}")
        named = {name: theirs for name, theirs in self.columns.items() if theirs is not None}
        missing = sorted({*named.values(), *self.label_names()}.difference(columns))
        if missing:
            raise PsclapError(f"{file} lacks the columns {missing} that corpus.options names; it has {columns}")
        own = {name: name for name in _COLUMNS if name in columns and name not in self.columns}
        names = own | named
        if "audio" not in names:
            raise PsclapError(f"{file} has no column audio; set columns.audio to one of {columns}")
        self.check_fields(names, file)
        return names

    def _audio_root(self, file: str) -> str:
        root = self.audio_root or folder_of(file)
        return root if is_remote(root) else str(Path(root).absolute())

    def _record(self, row: Row, names: Mapping[str, str], audio_root: str, file: str) -> Record:
        where, values = row
        separator = self.list_separator if suffix_of(file) in _DELIMITERS else None
        bare = Record(where, "", "", values, separator)
        path = bare.filled(names["audio"], "every clip needs its audio")
        key = check_key(bare.text(names["key"]), where) if "key" in names else safe_key(path)
        in_place = is_remote(path) or Path(path).is_absolute()
        return Record(where, key, path if in_place else join(audio_root, path), values, separator)


def _read_csv(stream: BinaryIO, file: str, delimiter: str) -> tuple[list[str], Iterable[Row]]:
    rows = _csv_lines(
        csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=delimiter, strict=True), file
    )
    try:
        _, columns = next(rows)
    except StopIteration:
        raise PsclapError(f"{file} is empty; its first line must name the columns") from None
    return columns, _csv_rows(columns, rows)


def _csv_lines(reader: Any, file: str) -> Iterator[tuple[str, list[str]]]:
    """The cells of each row that has any; a row may be of several lines, and is named by the first."""
    line = 1
    try:
        for cells in reader:
            if cells:
                yield f"{file} line {line}", cells
            line = reader.line_num + 1
    except (csv.Error, UnicodeDecodeError) as error:
        raise PsclapError(f"{file} line {line}: {error}; the file must be CSV in UTF-8") from error


def _csv_rows(columns: list[str], rows: Iterator[tuple[str, list[str]]]) -> Iterator[Row]:
    for where, cells in rows:
        if len(cells) != len(columns):
            raise PsclapError(f"{where}: {len(cells)} cells, such as {cells[0]!r}, for {len(columns)} columns")
        yield where, dict(zip(columns, cells, strict=True))


def _read_jsonl(stream: BinaryIO, file: str) -> tuple[list[str], Iterable[Row]]:
    rows = _json_objects(stream, file)
    first = next(rows, None)
    if first is None:
        raise PsclapError(f"{file} is empty; it must hold a JSON object per line")
    columns = list(first[1])
    return columns, _same_keys(columns, itertools.chain([first], rows))


def _json_objects(stream: BinaryIO, file: str) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        where = f"{file} line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise PsclapError(f"{where} is not JSON in UTF-8: {error}") from error
        if not isinstance(row, dict):
            raise PsclapError(f"{where}: {row!r} must be an object with a value per column")
        yield where, row


def _same_keys(columns: list[str], rows: Iterable[Row]) -> Iterator[Row]:
    for where, row in rows:
        if row.keys() != set(columns):
            differing = sorted(row.keys() ^ set(columns))
            raise PsclapError(
                f"{where}: the keys {differing} are not those of the first line; write null where there is no value"
            )
        yield where, row


def _parquet_rows(parquet: pq.ParquetFile, columns: list[str], file: str) -> Iterator[Row]:
    number = 0
    for batch in parquet.iter_batches(columns=columns):
        for row in batch.to_pylist():
            number += 1
            yield f"{file} row {number}", row
