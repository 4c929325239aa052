"""Utterances to shards: decode, check, resample, encode, and write tars whose bytes depend on nothing else.

Each shard is `{split}-{number:05d}.tar` in WebDataset's layout: for every clip `{key}.flac` (mono, 16 bit)
and `{key}.json` (its metadata). Beside the tars stand `index.parquet`, `summary.json` and `rejects.jsonl`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from psclap import audio
from psclap.config import ShardConfig
from psclap.errors import AudioError, PsclapError
from psclap.files import sha256_file, write_json
from psclap.parallel import process_map
from psclap.schema import INDEX_SCHEMA, METADATA_COLUMNS, SPLITS, Utterance
from psclap.shards import INDEX_NAME, REJECTS_NAME, SUMMARY_NAME
from psclap.tags import check_tags

_SHUFFLE_SEED = 0


@dataclass(frozen=True)
class _Job:
    path: Path
    utterances: Sequence[Utterance]
    config: ShardConfig


@dataclass(frozen=True)
class _Result:
    rows: list[dict[str, Any]]
    rejects: list[dict[str, str]]


def write_shards(
    utterances: Iterable[Utterance], folder: Path, config: ShardConfig, processes: int | None = None
) -> dict[str, Any]:
    """Writes shards, index, summary and list of rejects to `folder`, which exists; returns the summary.

    Clips are shuffled within their split once, so that reading a shard in order already mixes speakers. The
    bytes depend on the utterances and the configuration only. Raises PsclapError for utterances that break
    a rule, and where more than `max_reject_rate` of the clips are rejected.
    """
    utterances = sorted(utterances, key=lambda utterance: utterance.key)
    _check(utterances)
    jobs = _jobs(utterances, folder, config)
    rows, rejects = [], []
    for result in process_map(_write_shard, jobs, processes):
        rows += result.rows
        rejects += result.rejects
    _check_rejects(rejects, len(utterances), config.max_reject_rate)
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), folder / INDEX_NAME)
    (folder / REJECTS_NAME).write_text("".join(json.dumps(reject) + "\n" for reject in rejects))
    summary = _summary(rows, rejects, folder, config)
    write_json(folder / SUMMARY_NAME, summary)
    return summary


def _check(utterances: Sequence[Utterance]) -> None:
    if not utterances:
        raise PsclapError("shards: the corpus has no utterances; check corpus.options")
    repeated = [key for key, count in Counter(u.key for u in utterances).items() if count > 1]
    if repeated:
        raise PsclapError(f"shards: {len(repeated)} keys occur twice, such as {repeated[0]!r}; keys must be unique")
    for utterance in utterances:
        if "." in utterance.key or "/" in utterance.key or len(utterance.key.encode()) > 90:
            raise PsclapError(
                f"shards: key {utterance.key!r} cannot name a file in a WebDataset tar; "
                "use at most 90 bytes, without dots and slashes"
            )
        if not any(caption.text.strip() for caption in utterance.captions):
            raise PsclapError(f"shards: {utterance.key!r} has no caption; every clip needs one")
        check_tags(utterance.intrinsic_tags + utterance.situational_tags)


def _jobs(utterances: Sequence[Utterance], folder: Path, config: ShardConfig) -> list[_Job]:
    rng = np.random.default_rng(_SHUFFLE_SEED)
    jobs = []
    for split in SPLITS:
        of_split = [utterance for utterance in utterances if utterance.split == split]
        shuffled = [of_split[number] for number in rng.permutation(len(of_split))]
        size = config.max_samples_per_shard
        for number, start in enumerate(range(0, len(shuffled), size)):
            path = folder / f"{split}-{number:05d}.tar"
            jobs.append(_Job(path, shuffled[start : start + size], config))
    return jobs


def _write_shard(job: _Job) -> _Result:
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, str]] = []
    with tarfile.open(job.path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for utterance in job.utterances:
            try:
                wave = _load(utterance, job.config)
            except AudioError as error:
                reject = {"key": utterance.key, "audio": utterance.audio}
                rejects.append({**reject, "reason": error.reason, "detail": error.detail})
                continue
            metadata = asdict(utterance)
            row = {name: metadata[name] for name in METADATA_COLUMNS}
            flac = audio.encode_flac(wave, job.config.sample_rate_hz)
            # The data follows a header of one block; USTAR has no other, as keys are kept short.
            offset = tar.offset + tarfile.BLOCKSIZE
            _add(tar, f"{utterance.key}.flac", flac)
            _add(tar, f"{utterance.key}.json", json.dumps({**row, "num_samples": len(wave)}).encode())
            location = {"shard": job.path.name, "byte_offset": offset, "byte_length": len(flac)}
            rows.append({**row, **location, "num_samples": len(wave)})
    return _Result(rows, rejects)


def _load(utterance: Utterance, config: ShardConfig) -> audio.Wave:
    wave = audio.load(utterance.audio, config.sample_rate_hz)
    duration_s = len(wave) / config.sample_rate_hz
    if duration_s < config.min_duration_s:
        raise AudioError("too short", f"{duration_s:.3f} s, shard.min_duration_s is {config.min_duration_s}")
    if duration_s > config.max_duration_s:
        raise AudioError("too long", f"{duration_s:.3f} s, shard.max_duration_s is {config.max_duration_s}")
    if not wave.any():
        raise AudioError("silent", "every sample is zero")
    return wave


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # time, owner and mode stay at their constant defaults
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _check_rejects(rejects: list[dict[str, str]], total: int, max_reject_rate: float) -> None:
    if len(rejects) <= max_reject_rate * total and len(rejects) < total:
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(r["reason"] for r in rejects).most_common())
    examples = "\n".join(f"  {r['key']} ({r['audio']}): {r['reason']}, {r['detail']}" for r in rejects[:5])
    raise PsclapError(
        f"shards: {len(rejects)} of {total} clips rejected ({reasons}), more than shard.max_reject_rate "
        f"{max_reject_rate} allows; mend the audio or raise the rate. The first ones:\n{examples}"
    )


def _summary(
    rows: list[dict[str, Any]], rejects: list[dict[str, str]], folder: Path, config: ShardConfig
) -> dict[str, Any]:
    splits = {}
    for split in SPLITS:
        of_split = [row for row in rows if row["split"] == split]
        num_samples = sum(row["num_samples"] for row in of_split)
        splits[split] = {
            "clips": len(of_split),
            "hours": round(num_samples / config.sample_rate_hz / 3600, 4),
            "speakers": len({row["speaker"] for row in of_split}),
        }
    return {
        "sample_rate_hz": config.sample_rate_hz,
        "clips": len(rows),
        "splits": splits,
        "rejected": len(rejects),
        "reject_reasons": dict(sorted(Counter(reject["reason"] for reject in rejects).items())),
        "index_sha256": sha256_file(folder / INDEX_NAME),
        "shard_sha256": {path.name: sha256_file(path) for path in sorted(folder.glob("*.tar"))},
    }
