"""What a scoring job takes: a data set of shards, a manifest, or audio files, local or at any fsspec URL.

Each comes as Arrow tables of the columns `key`, `audio` (a path, a URL, or a reference with a byte range,
psclap/storage.py; relative to the input's root where it lies below it) and whatever else is known of the clips;
always the same clips in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import csv

from psclap import storage
from psclap.corpora.locations import expand, suffix_of
from psclap.errors import PsclapError
from psclap.schema import METADATA_COLUMNS, Split
from psclap.shards import INDEX_NAME, SUMMARY_NAME
from psclap.shards.index import ShardIndex

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".m4a", ".mp4", ".aac", ".ogg", ".oga", ".opus", ".webm", ".mka", ".wma"),
    *(".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".amr", ".ac3"),
)
_MANIFESTS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_ROWS = 4096
_TAKEN = ("window", "scores", "embedding", "model", "duration_s", "num_windows", "start_s", "end_s")
"""Names that the output gives to columns of its own, as tag_... too."""


class Input(Protocol):
    """Clips to score."""

    @property
    def root(self) -> str:
        """The folder or URL that relative `audio` is relative to."""

    @property
    def tells_content(self) -> bool:
        """Whether the rows say what the audio is (by its size or place), so that it may lie elsewhere the next time."""

    def tables(self) -> Iterator[pa.Table]:
        """Yields tables with the columns `key`, `audio` and the metadata."""


@dataclass(frozen=True)
class Shards:
    """The clips of one split of a data set of shards, or of all."""

    index: ShardIndex
    split: Split | None
    tells_content = True

    @property
    def root(self) -> str:
        """Where the shards lie."""
        return self.index.location

    def tables(self) -> Iterator[pa.Table]:
        """In the index's order. Raises PsclapError where the split has no clip."""
        index = self.index
        rows = np.arange(len(index)) if self.split is None else index.rows_of(self.split)
        if not len(rows):
            raise PsclapError(f"{index.location} has no {self.split or ''} clip; choose another split")
        columns = [*METADATA_COLUMNS, "shard", "byte_offset", "byte_length"]
        for start in range(0, len(rows), _ROWS):
            table = index.take(rows[start : start + _ROWS], columns)
            places = zip(*(table[name].to_pylist() for name in columns[-3:]), strict=True)
            audio = [storage.byte_range(shard, offset, length) for shard, offset, length in places]
            yield table.select(METADATA_COLUMNS).add_column(1, "audio", pa.array(audio, pa.string()))


@dataclass(frozen=True)
class Manifest:
    """Rows of CSV, JSON lines or Parquet files with a column of audio; the other columns go along as they are."""

    files: tuple[str, ...]
    audio_column: str
    audio_root: str | None = None
    tells_content = False

    @property
    def root(self) -> str:
        """`audio_root`, or the folder of the first file."""
        root = self.audio_root or _folder(self.files[0])
        return root if storage.is_remote(root) else str(Path(root).absolute())

    def tables(self) -> Iterator[pa.Table]:
        """In the files' order. A column `key` names the clips; without one, the audio does."""
        seen: list[np.ndarray] = []
        for file in self.files:
            for batch in self._batches(file):
                table = self._table(pa.Table.from_batches([batch]), file)
                seen.append(np.array([hash(key) for key in table["key"].to_pylist()]))
                yield table
        hashes = np.concatenate(seen or [np.empty(0, int)])
        if len(np.unique(hashes)) < len(hashes):
            raise PsclapError(
                f"{len(hashes) - len(np.unique(hashes))} keys of {', '.join(self.files)} stand in several rows: every "
                "row needs a key of its own; mend the column key (or, without one, the audio)"
            )

    def _batches(self, file: str) -> Iterator[pa.RecordBatch]:
        kind: Any = _MANIFESTS[suffix_of(file)]
        if kind == "csv":
            as_text = dict.fromkeys(("key", self.audio_column), pa.string())  # else the key 0001 would become 1
            kind = ds.CsvFileFormat(
                csv.ParseOptions(delimiter="\t" if suffix_of(file) == ".tsv" else ","),
                convert_options=csv.ConvertOptions(column_types=as_text),
            )
        try:
            with storage.reaching(file):
                filesystem, path = storage.resolve(file)
                yield from ds.dataset(path, format=kind, filesystem=filesystem).to_batches(batch_size=_ROWS)
        except FileNotFoundError as error:
            raise PsclapError(f"there is no manifest {file}; correct the input") from error
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise PsclapError(f"{file} is no readable manifest: {error}") from error

    def _table(self, table: pa.Table, file: str) -> pa.Table:
        if self.audio_column not in table.column_names:
            raise PsclapError(
                f"{file} has no column {self.audio_column!r}, it has {table.column_names}; name its column of audio"
            )
        taken = [name for name in table.column_names if name in _TAKEN or name.startswith("tag_")]
        if taken:
            raise PsclapError(f"{file} has the columns {taken}, which scoring makes itself; rename them")
        names = table[self.audio_column].cast(pa.string())
        if names.null_count:
            raise PsclapError(f"{file} has rows without {self.audio_column!r}; every clip needs its audio")
        if storage.has_credentials(" ".join(names.to_pylist())):
            raise PsclapError(f"{file}: its audio has {storage.NO_CREDENTIALS}")
        keys = table["key"].cast(pa.string()) if "key" in table.column_names else names
        rest = table.drop_columns([name for name in ("key", self.audio_column) if name in table.column_names])
        if "audio" in rest.column_names:
            raise PsclapError(f"{file} has the columns audio and {self.audio_column}; rename audio")
        if not self.audio_root and _folder(file) != self.root:
            names = pa.array([located(name, _folder(file)) for name in names.to_pylist()], pa.string())
        return pa.table({"key": keys, "audio": names, **{name: rest[name] for name in rest.column_names}})


@dataclass(frozen=True)
class AudioFiles:
    """Every audio file under a folder, or of a pattern."""

    location: str
    tells_content = True

    @property
    def root(self) -> str:
        """The folder, or what comes before the first wildcard."""
        filesystem, path = storage.resolve(self.location)
        if _has_wildcards(path):
            path = _fixed_part(path)
        elif filesystem.isfile(path):
            path = path.rpartition("/")[0]
        return _unstripped(filesystem, path.rstrip("/"))

    def tables(self) -> Iterator[pa.Table]:
        """In the order of their names. A clip's key is its path below the root."""
        with storage.reaching(self.location):
            filesystem, path = storage.resolve(self.location)
            filesystem.invalidate_cache()
            listed = filesystem.glob if _has_wildcards(path) else filesystem.find
            found = listed(path.rstrip("/"), detail=True)
            _, root = storage.resolve(self.root)
        names = sorted(
            name for name, info in found.items() if info["type"] == "file" and suffix_of(name) in AUDIO_SUFFIXES
        )
        if not names:
            raise PsclapError(
                f"{self.location} holds no audio file ({', '.join(AUDIO_SUFFIXES)}), no shards ({SUMMARY_NAME}) and is "
                "no manifest (.csv, .tsv, .jsonl, .parquet)"
            )
        for start in range(0, len(names), _ROWS):
            some = names[start : start + _ROWS]
            keys = pa.array([name.removeprefix(root).lstrip("/") for name in some], pa.string())
            sizes = pa.array([found[name]["size"] for name in some], pa.int64())
            yield pa.table({"key": keys, "audio": keys, "num_bytes": sizes})


def open_input(
    location: str, split: Split | None = None, audio_column: str | None = None, audio_root: str | None = None
) -> Input:
    """What lies at `location`: shards where it holds an index, a manifest by its suffix, else audio files.

    Raises PsclapError for an option that is for inputs of another kind, and for a URL with credentials.
    """
    storage.check_no_credentials(location, "input")
    storage.check_no_credentials(audio_root or "", "audio_root")
    is_manifest = suffix_of(location) in _MANIFESTS
    of_manifests = {"audio_column": audio_column, "audio_root": audio_root}
    misplaced = {"split": split} if is_manifest else of_manifests
    for name, value in misplaced.items():
        if value is not None:
            kind = "shards" if is_manifest else "manifests"
            raise PsclapError(f"{name} {value!r} is an option of {kind}, and {location} is none; leave it out")
    if is_manifest:
        return Manifest(tuple(expand(location, "input")), audio_column or "audio", audio_root)
    is_audio = suffix_of(location) in AUDIO_SUFFIXES or _has_wildcards(location)
    if split is not None or (not is_audio and {SUMMARY_NAME, INDEX_NAME} & storage.sizes(location).keys()):
        return Shards(ShardIndex(location), split)
    return AudioFiles(location)


def _folder(file: str) -> str:
    return file.rpartition("/")[0] if storage.is_remote(file) else str(Path(file).absolute().parent)


def located(name: str, root: str) -> str:
    """Where audio lies whose name may be relative to `root`."""
    in_place = storage.is_remote(name) or Path(name).is_absolute()
    return name if in_place else storage.join(root, name)


def _has_wildcards(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _fixed_part(pattern: str) -> str:
    """The folder before the first wildcard.

    >>> _fixed_part("/corpus/speaker*/clip?.wav")
    '/corpus'
    """
    first = min(pattern.find(sign) for sign in "*?[" if sign in pattern)
    return pattern[:first].rpartition("/")[0]


def _unstripped(filesystem: Any, name: str) -> str:
    protocols = filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)
    return name if "file" in protocols else filesystem.unstrip_protocol(name)
