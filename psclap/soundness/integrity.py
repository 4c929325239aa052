"""A data set as it lies on disk or behind a URL: its table, and whether the shards hold what the index says."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from psclap import audio, storage
from psclap.errors import PsclapError
from psclap.parallel import process_map
from psclap.schema import INDEX_SCHEMA
from psclap.shards import INDEX_NAME, SUMMARY_NAME, check_shard_name
from psclap.soundness.checks import check
from psclap.soundness.columns import Columns
from psclap.soundness.findings import Finding, Report, error, report

MANIFEST_NAME = "utterances.parquet"
_SIZE_THREADS = 16
_REBUILD = "rebuild the shards with `dvc repro -f shard`."


@dataclass(frozen=True)
class DataSet:
    """The columns of an index or a manifest at `path`; a manifest has no shards, so no rate and no summary."""

    path: str
    table: pa.Table
    sample_rate_hz: int | None
    summary: dict[str, Any]


def check_location(location: Path | str, *, deep: bool = False, processes: int | None = None) -> Report:
    """Checks a folder of shards, a folder with a manifest, or either's Parquet file; local or a URL.

    `deep` also reads every shard: its SHA-256, and whether each clip decodes to its number of samples. Raises
    PsclapError where there is no data set that can be read, and for shards that are said to lie elsewhere.
    """
    data = open_data_set(location)
    of_table = check(data.table, data.sample_rate_hz, data.summary)
    if not data.summary:
        return of_table
    return report([*of_table.findings, *_check_shards(data, deep, processes)], of_table.statistics)


def open_data_set(location: Path | str) -> DataSet:
    """Reads the table and the summary of a data set; errors as `check_location`."""
    path = _table_path(str(location))
    table = _read_table(path)
    if "shard" not in table.column_names:
        return DataSet(path, table, None, {})
    summary = _read_summary(_beside(path, SUMMARY_NAME))
    return DataSet(path, table, summary["sample_rate_hz"], summary)


def _beside(path: str, name: str) -> str:
    return storage.join(path.rpartition("/")[0] or ".", name)


def _table_path(location: str) -> str:
    if location.endswith(".parquet"):
        return location
    folders = [location, _url_of(location)]
    for path in [storage.join(folder, name) for folder in folders for name in (INDEX_NAME, MANIFEST_NAME)]:
        filesystem, bare = storage.resolve(path)
        if filesystem.exists(bare):
            return path
    raise PsclapError(
        f"no data set in {location}: it holds neither {INDEX_NAME} nor {MANIFEST_NAME}; "
        "give the folder that the stage shard or prepare wrote"
    )


def _url_of(folder: str) -> str:
    """Where the shards of a folder lie that holds their summary alone; else the folder."""
    try:
        return json.loads(storage.read(storage.join(folder, SUMMARY_NAME)))["url"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # the reader of the summary says what is wrong with it
        return folder


def _read_table(path: str) -> pa.Table:
    filesystem, bare = storage.resolve(path)
    try:
        with filesystem.open(bare, "rb") as stream:
            file = pq.ParquetFile(stream)
            # Phonemes are many, and no check looks at them.
            known = [name for name in INDEX_SCHEMA.names if name in file.schema_arrow.names and name != "phonemes"]
            return file.read(known)
    except FileNotFoundError as cause:
        raise PsclapError(f"no data set at {path}: there is no such file") from cause
    except (OSError, pa.ArrowException) as cause:
        raise PsclapError(f"cannot read {path}: {cause}; write it again with `dvc repro -f`") from cause


def _read_summary(path: str) -> dict[str, Any]:
    try:
        summary = json.loads(storage.read(path))
        rate_hz = summary["sample_rate_hz"]
        if type(rate_hz) is int and rate_hz > 0:
            return summary
        raise PsclapError(f"{path}: sample_rate_hz is {rate_hz!r}, expected a positive number; {_REBUILD}")
    except FileNotFoundError as cause:
        raise PsclapError(f"{path} is missing, so the set of shards is not complete; {_REBUILD}") from cause
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as cause:
        raise PsclapError(f"{path} is no summary of shards ({cause!r}); {_REBUILD}") from cause


def _check_shards(data: DataSet, deep: bool, processes: int | None) -> Iterator[Finding]:
    columns = Columns(data.table)
    names, ends = columns.coded("shard").names, _ends(columns)
    for name in names:
        check_shard_name(name, data.path)
    with ThreadPoolExecutor(_SIZE_THREADS) as threads:
        sizes = list(threads.map(_size, (_beside(data.path, name) for name in names)))
    missing = [name for name, size in zip(names, sizes, strict=True) if size is None]
    yield error("missing shards", "shards", len(missing), missing, f"Copy them again, or {_REBUILD}")
    short = [
        f"{name}: {size} bytes, its clips end at {end}"
        for name, size, end in zip(names, sizes, ends, strict=True)
        if size is not None and size < end
    ]
    yield error("shards cut off", "shards", len(short), short, f"Copy them again, or {_REBUILD}")
    if deep:
        yield from _check_contents(data, columns, {*names} - {*missing}, processes)


def _ends(columns: Columns) -> np.ndarray:
    """(shards,) the number of bytes that each shard must have for its clips."""
    shard = columns.coded("shard")
    ends = np.zeros(len(shard.values), np.int64)
    np.maximum.at(ends, shard.codes, columns.numbers("byte_offset") + columns.numbers("byte_length"))
    return ends


def _size(location: str) -> float | None:
    """The bytes of a file; None where it is missing, infinite where a server does not say."""
    filesystem, bare = storage.resolve(location)
    try:
        size = filesystem.size(bare)
    except FileNotFoundError:
        return None
    return math.inf if size is None else size


@dataclass(frozen=True)
class _Shard:
    """What a worker needs to read one shard: where it is, and its rows of the index."""

    name: str
    location: str
    sample_rate_hz: int | None
    rows: np.ndarray
    byte_offset: np.ndarray
    byte_length: np.ndarray
    num_samples: np.ndarray


def _check_contents(data: DataSet, columns: Columns, present: set[str], processes: int | None) -> Iterator[Finding]:
    stated = {name: shard["sha256"] for name, shard in data.summary.get("shards", {}).items()}
    stated[INDEX_NAME] = data.summary.get("index_sha256")
    changed = [INDEX_NAME] if _sha256(data.path) != stated[INDEX_NAME] else []
    damaged: list[tuple[int, str]] = []
    shards = [shard for shard in _shards(data, columns) if shard.name in present]
    for shard, (sha256, faults) in zip(shards, process_map(_read_shard, shards, processes), strict=True):
        changed += [shard.name] if sha256 != stated.get(shard.name) else []
        damaged += faults
    advice = f"Their SHA-256 is not that of summary.json; copy them again, or {_REBUILD}"
    yield error("changed files", "files", len(changed), changed, advice)
    keys = columns.table["key"]
    examples = (f"{keys[row]}: {why}" for row, why in damaged)
    yield error("damaged clips", "clips", len(damaged), examples, f"Copy the shards again, or {_REBUILD}")


def _shards(data: DataSet, columns: Columns) -> Iterator[_Shard]:
    """Each shard with those of its rows whose byte range can be read."""
    shard = columns.coded("shard")
    names = ("byte_offset", "byte_length", "num_samples")
    numbers = {name: columns.numbers(name) for name in names}
    possible = (numbers["byte_offset"] >= 0) & (numbers["byte_length"] > 0)
    order = np.argsort(shard.codes, kind="stable")
    for name, rows in zip(shard.names, np.split(order, np.cumsum(shard.counts)[:-1]), strict=True):
        chosen = rows[possible[rows]]
        values = {column: numbers[column][chosen] for column in names}
        yield _Shard(name, _beside(data.path, name), data.sample_rate_hz, chosen, **values)


def _read_shard(shard: _Shard) -> tuple[str, list[tuple[int, str]]]:
    """The shard's SHA-256, and (row, what is wrong) of its damaged clips."""
    faults = []
    clips = zip(shard.rows, shard.byte_offset, shard.byte_length, shard.num_samples, strict=True)
    for row, offset, length, num_samples in clips:
        reference = storage.byte_range(shard.location, offset, length)
        why = _clip_fault(reference, num_samples, shard.sample_rate_hz)
        faults += [(int(row), why)] if why else []
    return _sha256(shard.location), faults


def _clip_fault(reference: str, num_samples: int, sample_rate_hz: int | None) -> str | None:
    try:
        wave, rate_hz = audio.decode(storage.read(reference))
    except PsclapError as cause:
        return str(cause)
    if (len(wave), rate_hz) != (num_samples, sample_rate_hz):
        return f"{len(wave)} samples at {rate_hz} Hz, the index says {num_samples} at {sample_rate_hz} Hz"
    return None


def _sha256(location: str) -> str:
    filesystem, bare = storage.resolve(location)
    with filesystem.open(bare, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
