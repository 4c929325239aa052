"""Bytes out of shards, wherever they lie; light enough to be sent to every loader process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psclap import storage
from psclap.errors import PsclapError
from psclap.shards import REBUILD, check_shard_name
from psclap.shards.cache import FileCache, RemoteFile

_TAR_BLOCK = 512


@dataclass(frozen=True)
class Place:
    """Where a clip lies: its FLAC bytes in a shard, the length of the JSON that follows, and its samples."""

    shard: str
    byte_offset: int
    byte_length: int
    metadata_length: int
    num_samples: int


@dataclass(frozen=True)
class ShardStore:
    """The shards of one data set. Those of a remote are read from `cache`."""

    location: str
    shards: Mapping[str, tuple[int, str]]  # bytes and SHA-256 by name
    cache: FileCache

    def read(self, shard: str, offset: int, length: int) -> bytes:
        """A range of a shard's bytes. Raises PsclapError where the shard is missing or cut off."""
        descriptor = self._open(shard)
        try:
            data = os.pread(descriptor, length, offset)
        except OSError as error:
            raise PsclapError(f"cannot read shard {self.location}/{shard}: {error.strerror}") from error
        finally:
            os.close(descriptor)
        if len(data) != length:
            raise self._damaged(shard, f"{len(data)} of the {length} bytes at offset {offset} are there")
        return data

    def flac(self, place: Place) -> bytes:
        """The FLAC bytes of a clip; errors as `read`."""
        return self._checked(place, self.read(place.shard, place.byte_offset, place.byte_length))

    def clip(self, place: Place) -> tuple[dict[str, Any], bytes]:
        """The metadata and the FLAC bytes of a clip, by one read; errors as `read`."""
        start = -(-place.byte_length // _TAR_BLOCK) * _TAR_BLOCK + _TAR_BLOCK  # the padding, and the JSON's header
        data = self.read(place.shard, place.byte_offset, start + place.metadata_length)
        try:
            metadata = json.loads(data[start:])
        except ValueError as error:
            raise self._damaged(place.shard, f"no metadata after the clip at offset {place.byte_offset}") from error
        return metadata, self._checked(place, data[: place.byte_length])

    def check_files(self) -> None:
        """Raises PsclapError where a shard is missing or has another length than the summary says."""
        found = storage.sizes(self.location)
        for name, (num_bytes, _) in self.shards.items():
            if name not in found:
                raise PsclapError(f"shard {self.location}/{name} is missing; run `dvc repro shard`")
            if found[name] != num_bytes:
                raise self._damaged(name, f"it has {found[name]} bytes, {num_bytes} were written")

    def _open(self, shard: str) -> int:
        path = storage.join(self.location, check_shard_name(shard, self.location))
        if storage.is_remote(path):
            if shard not in self.shards:
                raise self._damaged(shard, "the summary of its data set does not name it")
            return self.cache.open(RemoteFile(path, *self.shards[shard]))
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            raise PsclapError(f"cannot read shard {path}: {error.strerror}; run `dvc repro shard`") from error

    def _checked(self, place: Place, data: bytes) -> bytes:
        if data[:4] != b"fLaC":
            raise self._damaged(place.shard, f"no FLAC stream at offset {place.byte_offset}")
        return data

    def _damaged(self, shard: str, what: str) -> PsclapError:
        return PsclapError(f"shard {self.location}/{shard} is damaged: {what}; {REBUILD}")
