"""One unit of the work of sharding: some utterances of a split, to one shard, or several where it fills up.

A unit that is done leaves a receipt: its rows of the index, its rejects, and the hashes of its shards. Who runs
it again, after whatever interrupted the whole, finds the receipt and has nothing to do.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from psclap import audio, storage
from psclap.data_config import ShardConfig
from psclap.errors import AudioError, PsclapError
from psclap.files import sha256_file
from psclap.loudness import normalise_loudness
from psclap.schema import INDEX_SCHEMA, locate
from psclap.text.phonemes import MAX_CHARACTERS
from psclap.text.symbols import symbols_of

_RECEIPT_KEY = b"psclap.receipt"
_WRITE_BYTES = 1 << 20  # a clip at a time, not 16 kB


@dataclass(frozen=True)
class Unit:
    """What to shard and where to put it; `fingerprint` stands for all that its bytes depend on."""

    name: str
    fingerprint: str
    utterances: pa.Table
    audio_folder: Path
    config: ShardConfig
    destination: str
    receipts: str

    @property
    def receipt_name(self) -> str:
        """The receipt's file name. Another input has another name."""
        return f"{self.name}-{self.fingerprint[:16]}.parquet"


@dataclass(frozen=True)
class Receipt:
    """What became of a unit: rows of the index, rejects, and bytes, SHA-256 and clips of each shard."""

    rows: pa.Table
    rejects: list[dict[str, str]]
    shards: dict[str, dict[str, Any]]


def write_unit(unit: Unit) -> None:
    """Writes the unit's shards, each whole or not at all, and then its receipt."""
    rows: list[dict[str, Any]] = []
    rejects: list[dict[str, str]] = []
    shards: dict[str, dict[str, Any]] = {}
    clips = _encoded(unit, rejects)
    clip = next(clips, None)
    while clip is not None:
        name = f"{unit.name}-{len(shards)}.tar" if shards else f"{unit.name}.tar"
        first = len(rows)
        with storage.writing(storage.join(unit.destination, name)) as path:
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                tar.copybufsize = _WRITE_BYTES  # type: ignore[attr-defined]
                while clip is not None and clip.fits(tar, unit.config.max_bytes_per_shard):
                    rows.append(clip.add_to(tar, name))
                    clip = next(clips, None)
            shards[name] = {
                "bytes": path.stat().st_size,
                "sha256": sha256_file(path),
                "clips": len(rows) - first,
            }
    _write_receipt(unit, Receipt(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), rejects, shards))


def _write_receipt(unit: Unit, receipt: Receipt) -> None:
    rest = json.dumps({"rejects": receipt.rejects, "shards": receipt.shards})
    table = receipt.rows.replace_schema_metadata({_RECEIPT_KEY: rest.encode()})
    with storage.writing(storage.join(unit.receipts, unit.receipt_name)) as path:
        pq.write_table(table, path)


def read_receipt(unit: Unit) -> Receipt:
    """The receipt of a unit that is done."""
    data = storage.read(storage.join(unit.receipts, unit.receipt_name))
    table = pq.read_table(pa.BufferReader(data))
    rest = json.loads(table.schema.metadata[_RECEIPT_KEY])
    return Receipt(table.replace_schema_metadata(), rest["rejects"], rest["shards"])


@dataclass(frozen=True)
class _Clip:
    """A clip as it goes into a tar."""

    row: Mapping[str, Any]
    num_samples: int
    flac: bytes
    metadata: bytes

    def fits(self, tar: tarfile.TarFile, max_bytes: int) -> bool:
        """Whether it may be added; the first clip may always be."""
        return tar.offset == 0 or _closed_size(tar.offset + _in_tar(self.flac) + _in_tar(self.metadata)) <= max_bytes

    def add_to(self, tar: tarfile.TarFile, shard: str) -> dict[str, Any]:
        """Adds it; returns its row of the index."""
        # The data follows a header of one block; USTAR has no other, as keys are kept short.
        offset = tar.offset + tarfile.BLOCKSIZE
        _add(tar, f"{self.row['key']}.flac", self.flac)
        _add(tar, f"{self.row['key']}.json", self.metadata)
        return {
            **self.row,
            "shard": shard,
            "byte_offset": offset,
            "byte_length": len(self.flac),
            "metadata_length": len(self.metadata),
            "num_samples": self.num_samples,
        }


def _encoded(unit: Unit, rejects: list[dict[str, str]]) -> Iterator[_Clip]:
    """The unit's clips in order; those that cannot be used go to `rejects` instead."""

    def reject(row: Mapping[str, Any], reference: str, reason: str, detail: str) -> None:
        rejects.append({"key": row["key"], "audio": reference, "reason": reason, "detail": detail})

    for row in unit.utterances.to_pylist():
        reference = locate(row.pop("audio"), unit.audio_folder)
        try:
            wave = _load(reference, unit.config)
        except AudioError as error:
            reject(row, reference, error.reason, error.detail)
            continue
        transcript = row["transcript"] or ""
        try:
            row["phonemes"] = _said(transcript, row["language"]) if unit.config.phonemes else []
        except PsclapError as error:
            reject(row, reference, "cannot be said", f"{transcript[:MAX_CHARACTERS]!r}: {error}")
            continue
        metadata = json.dumps({**row, "num_samples": len(wave)}).encode()
        yield _Clip(row, len(wave), audio.encode_flac(wave, unit.config.sample_rate_hz), metadata)


def _load(reference: str, config: ShardConfig) -> audio.Wave:
    wave = audio.load(reference, config.sample_rate_hz, max_duration_s=config.max_duration_s)
    duration_s = len(wave) / config.sample_rate_hz
    if duration_s < config.min_duration_s:
        raise AudioError("too short", f"{duration_s:.3f} s, shard.min_duration_s is {config.min_duration_s}")
    if not wave.any():
        raise AudioError("silent", "every sample is zero")
    return (
        wave if config.loudness_lufs is None else normalise_loudness(wave, config.sample_rate_hz, config.loudness_lufs)
    )


def _said(transcript: str, language: str) -> list[str]:
    return [*symbols_of(transcript, language)] if transcript.strip() else []


def _in_tar(data: bytes) -> int:
    """The bytes of a member: a header of one block, and the data in whole blocks."""
    return tarfile.BLOCKSIZE + _round_up(len(data), tarfile.BLOCKSIZE)


def _closed_size(num_bytes: int) -> int:
    """The size of a tar of so many bytes of members: two blocks end it, and it is filled up to whole records."""
    return _round_up(num_bytes + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # time, owner and mode stay at their constant defaults
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
