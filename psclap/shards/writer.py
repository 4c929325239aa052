"""Utterances to shards: WebDataset tars with an index, a summary and a list of rejects.

Each shard is `{split}-{number:05d}.tar`: for every clip `{key}.flac` (mono, 16 bit) and `{key}.json` (its
metadata). Beside the tars stand `index.parquet`, `rejects.jsonl` and, last of all, `summary.json`. All bytes are a
function of the utterances, their audio and the configuration: who writes them, with how many processes, and how
often it was interrupted, leaves no trace.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile
import soxr

from psclap import storage
from psclap.data_config import ShardConfig
from psclap.errors import PsclapError
from psclap.files import sha256_file
from psclap.parallel import process_map
from psclap.schema import INDEX_SCHEMA, SPLITS, UTTERANCES_SCHEMA, Split
from psclap.shards import INDEX_NAME, REJECTS_NAME, SUMMARY_NAME
from psclap.shards.unit import Receipt, Unit, read_receipt, write_unit
from psclap.tags import check_tags
from psclap.text.symbols import rules

_FORMAT = 4  # of the bytes: a change of what is written changes it
_SHUFFLE_SEED = 0
_ROWS_PER_GROUP = 1 << 16

RunUnits = Callable[[Callable[[Unit], None], Sequence[Unit]], Iterable[None]]
"""Calls a function on every unit, in parallel, and yields after each: `process_map`, or Ray's counterpart."""


@dataclass(frozen=True)
class ShardJob:
    """What to shard: the utterances, the folder that their relative paths start from, and how.

    Shards go to `destination` (a folder or URL). `receipts` is where a build that was interrupted finds what is
    done; it is no part of the result.
    """

    utterances: pa.Table
    audio_folder: Path
    config: ShardConfig
    destination: str
    receipts: str


def write_shards(job: ShardJob, run: RunUnits = process_map) -> dict[str, Any]:
    """Writes shards, index, list of rejects and summary to the destination; returns the summary.

    Clips are shuffled within their split once, so that reading a shard in order already mixes speakers. Raises
    PsclapError for utterances that break a rule, and where more than `max_reject_rate` of the clips are rejected.
    """
    check_utterances(job.utterances)
    units = split_into_units(job)
    _forget_other_builds(units)
    done = _done(units)
    if len(done) < len(units):
        storage.remove(storage.join(job.destination, SUMMARY_NAME))  # of an earlier build: it says "whole"
    for _ in run(write_unit, [unit for unit in units if unit.name not in done]):
        pass
    return _finish(job, units)


def check_utterances(utterances: pa.Table) -> None:
    """Raises PsclapError where there are none, and for the first one that breaks a rule."""
    if not utterances.num_rows:
        raise PsclapError("shards: the corpus has no utterances; check corpus.options")
    unknown = set(pc.unique(utterances["split"]).to_pylist()) - set(SPLITS)
    if unknown:
        raise PsclapError(f"shards: split {sorted(unknown)[0]!r} must be one of {', '.join(SPLITS)}")
    keys = utterances["key"]
    counts = pc.value_counts(keys)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        raise PsclapError(
            f"shards: {len(repeated)} keys occur twice, such as {repeated[0].as_py()!r}; keys must be unique"
        )
    bad = pc.or_(pc.match_substring_regex(keys, "[./]|^$"), pc.greater(pc.binary_length(keys), 90))
    for key in keys.filter(bad)[:1].to_pylist():
        raise PsclapError(
            f"shards: key {key!r} cannot name a file in a WebDataset tar; use 1 to 90 bytes, without dots and slashes"
        )
    texts = pc.fill_null(utterances["transcript"], "")
    useful = pc.or_(_has_caption(utterances["captions"]), pc.not_equal(pc.utf8_trim_whitespace(texts), ""))
    for key in keys.filter(pc.invert(useful))[:1].to_pylist():
        raise PsclapError(f"shards: {key!r} has no caption and no transcript; every clip needs one of them")
    for name in ("intrinsic_tags", "situational_tags", "classification_tags"):
        check_tags(pc.unique(pc.list_flatten(utterances[name])).to_pylist())


def _has_caption(captions: pa.ChunkedArray) -> pa.Array:
    texts = pc.struct_field(pc.list_flatten(captions), "text")
    is_text = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0).to_numpy()
    has_caption = np.zeros(len(captions), bool)
    has_caption[pc.list_parent_indices(captions).to_numpy()[is_text]] = True
    return pa.array(has_caption)


def split_into_units(job: ShardJob) -> list[Unit]:
    """The units of a job, in the order of the index."""
    rng = np.random.default_rng(_SHUFFLE_SEED)
    # Large types: the texts of ten million clips have over 2 GB. In one chunk, or each unit would make it one.
    utterances = job.utterances.select(UTTERANCES_SCHEMA.names).cast(_large(UTTERANCES_SCHEMA)).combine_chunks()
    order = pc.sort_indices(utterances["key"]).to_numpy()
    split_of_row = utterances["split"].to_numpy()[order]
    size = job.config.max_samples_per_shard
    units = []
    for split in SPLITS:
        rows = rng.permutation(order[split_of_row == split])
        for number, start in enumerate(range(0, len(rows), size)):
            # One schema, whether they were read or made: Parquet has another name for the elements of a list.
            table = utterances.take(rows[start : start + size]).cast(UTTERANCES_SCHEMA).combine_chunks()
            name = f"{split}-{number:05d}"
            fingerprint = _fingerprint(table, job.audio_folder, job.config)
            units.append(Unit(name, fingerprint, table, job.audio_folder, job.config, job.destination, job.receipts))
    return units


def _large(schema: pa.Schema) -> pa.Schema:
    """The schema with 64-bit offsets for its texts and lists."""

    def large(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_list(kind):
            return pa.large_list(large(kind.value_type))
        if pa.types.is_struct(kind):
            return pa.struct([(field.name, large(field.type)) for field in kind])
        return pa.large_string() if pa.types.is_string(kind) else kind

    return pa.schema([(field.name, large(field.type)) for field in schema])


def _fingerprint(utterances: pa.Table, audio_folder: Path, config: ShardConfig) -> str:
    """A hash of what a unit's bytes depend on; of local audio its length and time of change, not its bytes."""
    versions = (_FORMAT, soundfile.__libsndfile_version__, soxr.__version__, *(rules() if config.phonemes else ()))
    digest = hashlib.sha256(json.dumps([versions, asdict(replace(config, url=None, max_reject_rate=0))]).encode())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, utterances.schema) as writer:
        writer.write_table(utterances)
    digest.update(sink.getvalue())
    for reference in utterances["audio"].to_pylist():
        location, _, _ = storage.parse_reference(reference)
        if not storage.is_remote(location):
            digest.update(_state_of_file(audio_folder / location))
    return digest.hexdigest()


def _state_of_file(path: Path) -> bytes:
    try:
        status = path.stat()
    except OSError:  # it will be a reject
        return b"missing;"
    return f"{status.st_size} {status.st_mtime_ns};".encode()


def fingerprint_of(units: Sequence[Unit]) -> str:
    """A hash of what a whole data set's bytes depend on."""
    return hashlib.sha256("".join(unit.fingerprint for unit in units).encode()).hexdigest()


def _forget_other_builds(units: Sequence[Unit]) -> None:
    """Removes receipts of another input. Their shards are overwritten now, and may keep their length."""
    known = {unit.receipt_name for unit in units}
    for name in storage.sizes(units[0].receipts):
        if name not in known:
            storage.remove(storage.join(units[0].receipts, name))


def _done(units: Sequence[Unit]) -> set[str]:
    """The names of the units whose receipt is there, and their shards."""
    receipts = storage.sizes(units[0].receipts)
    with_receipt = [unit for unit in units if unit.receipt_name in receipts]
    shards = storage.sizes(units[0].destination) if with_receipt else {}
    return {
        unit.name
        for unit, receipt in zip(with_receipt, _receipts(with_receipt), strict=True)
        if all(shards.get(name) == shard["bytes"] for name, shard in receipt.shards.items())
    }


def _receipts(units: Sequence[Unit]) -> Iterator[Receipt]:
    with ThreadPoolExecutor(8) as executor:  # of a remote, where each one is waited for
        yield from executor.map(read_receipt, units)


def _finish(job: ShardJob, units: Sequence[Unit]) -> dict[str, Any]:
    """Puts the units' receipts together: index, list of rejects, summary."""
    totals = _Totals()
    with storage.writing(storage.join(job.destination, INDEX_NAME)) as path:
        _write_index(path, totals.adding(_receipts(units)))
        index = {"index_bytes": path.stat().st_size, "index_sha256": sha256_file(path)}
    with storage.writing(storage.join(job.destination, REJECTS_NAME)) as path:
        path.write_text("".join(json.dumps(reject) + "\n" for reject in totals.rejects))
    _check_rejects(totals.rejects, job.utterances.num_rows, job)
    summary = {**totals.summary(job.config), **index, "shards": totals.shards}
    ours = {*totals.shards, INDEX_NAME, REJECTS_NAME, SUMMARY_NAME}
    for name in storage.sizes(job.destination).keys() - ours:  # of a build with other settings
        storage.remove(storage.join(job.destination, name))
    with storage.writing(storage.join(job.destination, SUMMARY_NAME)) as path:
        path.write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _write_index(path: Path, receipts: Iterator[Receipt]) -> None:
    """Rows in groups of _ROWS_PER_GROUP, of which a reader takes those that it needs."""
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(path, INDEX_SCHEMA, compression="zstd") as writer:
        for receipt in receipts:
            waiting.append(receipt.rows)
            if sum(table.num_rows for table in waiting) >= _ROWS_PER_GROUP:
                table = pa.concat_tables(waiting)
                whole = table.num_rows // _ROWS_PER_GROUP * _ROWS_PER_GROUP
                writer.write_table(table.slice(0, whole), row_group_size=_ROWS_PER_GROUP)
                waiting = [table.slice(whole)]
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


class _Totals:
    """What the summary says, counted while the receipts pass."""

    def __init__(self) -> None:
        self.rejects: list[dict[str, str]] = []
        self.shards: dict[str, dict[str, Any]] = {}
        self._clips: Counter[Split] = Counter()
        self._samples: Counter[Split] = Counter()
        self._speakers: defaultdict[Split, set[str]] = defaultdict(set)

    def adding(self, receipts: Iterator[Receipt]) -> Iterator[Receipt]:
        for receipt in receipts:
            self.rejects += receipt.rejects
            self.shards |= receipt.shards
            for split in pc.unique(receipt.rows["split"]).to_pylist():  # a unit is of one split
                self._clips[split] += receipt.rows.num_rows
                self._samples[split] += pc.sum(receipt.rows["num_samples"]).as_py()
                self._speakers[split].update(pc.unique(receipt.rows["speaker"]).to_pylist())
            yield receipt

    def summary(self, config: ShardConfig) -> dict[str, Any]:
        return {
            "sample_rate_hz": config.sample_rate_hz,
            "clips": self._clips.total(),
            "splits": {
                split: {
                    "clips": self._clips[split],
                    "hours": round(self._samples[split] / config.sample_rate_hz / 3600, 4),
                    "speakers": len(self._speakers[split]),
                }
                for split in SPLITS
            },
            "rejected": len(self.rejects),
            "reject_reasons": dict(sorted(Counter(reject["reason"] for reject in self.rejects).items())),
        }


def _check_rejects(rejects: list[dict[str, str]], total: int, job: ShardJob) -> None:
    max_reject_rate = job.config.max_reject_rate
    if len(rejects) <= max_reject_rate * total and len(rejects) < total:
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(r["reason"] for r in rejects).most_common())
    examples = "\n".join(f"  {r['key']} ({r['audio']}): {r['reason']}, {r['detail']}" for r in rejects[:5])
    raise PsclapError(
        f"shards: {len(rejects)} of {total} clips rejected ({reasons}), more than shard.max_reject_rate "
        f"{max_reject_rate} allows; mend the clips or raise the rate. All of them are listed in "
        f"{storage.join(job.destination, REJECTS_NAME)}. The first ones:\n{examples}"
    )
