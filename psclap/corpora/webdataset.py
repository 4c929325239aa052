"""WebDataset shards that exist already, local or remote, psclap's own included: only their headers are read.

A sample is the run of members `KEY.EXTENSION` of one key. Its audio stays in the tar and becomes a reference with
a byte range; what is said about it comes from members (`txt`) or from fields of JSON members (`json.caption`).
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

from psclap import log
from psclap.corpora.keys import safe_sample_key
from psclap.corpora.locations import expand, open_binary
from psclap.corpora.record import FIELDS, Record, RecordOptions
from psclap.errors import ConfigError, PsclapError
from psclap.parallel import process_map
from psclap.schema import METADATA_COLUMNS, Utterance
from psclap.storage import byte_range
from psclap.strict import not_empty

_PSCLAP_FIELDS = {name: f"json.{name}" for name in METADATA_COLUMNS if name != "key"}
_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<extension>[^/]+)")
_COMPRESSED = re.compile(rb"\x1f\x8b\x08|BZh[1-9]1AY&SY|\xfd7zXZ|\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstandard
_MAX_METADATA_BYTES = 1 << 20


class _IncompleteError(PsclapError):
    """A sample lacks a member or a field."""


@dataclass
class _Sample:
    """The members of one key: where the data of each lies, and the bytes of those that say something."""

    key: str
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WebDataset(RecordOptions):
    """Where the shards lie, and what their members mean; docs/corpora.md explains each option."""

    urls: str | tuple[str, ...] = field(metadata=not_empty())
    fields: Literal["psclap"] | Mapping[str, str]
    audio: tuple[str, ...] = field(default=("flac", "wav", "mp3", "ogg", "opus", "m4a"), metadata=not_empty())
    key_prefix: str = ""
    skip_incomplete: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self._names() if name not in FIELDS]
        if unknown:
            raise ConfigError(f"fields: {unknown} must be among our names {', '.join(FIELDS)}")
        self.check_fields(self._names(), "fields")

    def utterances(self, folder: Path, processes: int | None) -> Iterator[Utterance]:
        """Yields an utterance per sample, shard by shard; several shards are scanned at the same time.

        Raises PsclapError that names the shard and the sample where one is incomplete, or the tar is broken.
        """
        patterns = [self.urls] if isinstance(self.urls, str) else self.urls
        urls = [url for pattern in patterns for url in expand(pattern, "corpus.options.urls")]
        skipped = 0
        for utterances, incomplete in process_map(partial(_scan, self), urls, processes):
            yield from utterances
            skipped += incomplete
        if skipped:
            line = f"webdataset: {skipped} incomplete samples are left out (corpus.options.skip_incomplete)"
            log.warning(line, skipped=skipped)

    def _names(self) -> Mapping[str, str]:
        return _PSCLAP_FIELDS if self.fields == "psclap" else self.fields

    def references(self) -> set[str]:
        """The members and JSON fields that the options ask for."""
        return {*self._names().values(), *self.label_names()}

    def record(self, sample: _Sample, url: str) -> Record:
        """A sample's values by reference; raises PsclapError where it lacks its audio or one of them."""
        where = f"{url} sample {sample.key}"
        extension = next((extension for extension in self.audio if extension in sample.places), None)
        if extension is None:
            raise _IncompleteError(f"{where} has no audio ({', '.join(self.audio)}), only {sorted(sample.places)}")
        values = {reference: _resolve(sample, reference, where) for reference in self.references()}
        prefix = self.key_prefix.replace("{shard}", PurePosixPath(url).stem)
        return Record(where, safe_sample_key(prefix + sample.key), byte_range(url, *sample.places[extension]), values)


def _scan(options: WebDataset, url: str) -> tuple[list[Utterance], int]:
    """The utterances of a shard, and how many incomplete samples are left out."""
    incomplete = 0

    def records() -> Iterator[Record]:
        nonlocal incomplete
        for sample in _samples(stream, url, options.references()):
            try:
                yield options.record(sample, url)
            except _IncompleteError:
                if not options.skip_incomplete:
                    raise
                incomplete += 1

    with open_binary(url) as stream:
        return list(options.from_records(records(), options._names())), incomplete


def _samples(stream: BinaryIO, url: str, references: Iterable[str]) -> Iterator[_Sample]:
    sample: _Sample | None = None
    for member in _members(stream, url):
        match = _MEMBER.fullmatch(member.name.removeprefix("./"))
        if match is None:
            raise PsclapError(f"{url}: the member {member.name} is not KEY.EXTENSION; it belongs to no sample")
        if sample is None or sample.key != match["key"]:
            if sample is not None:
                yield sample
            sample = _Sample(match["key"])
        extension = match["extension"].lower()
        sample.places[extension] = (member.offset_data, member.size)
        if any(reference.rstrip("?") == extension or reference.startswith(f"{extension}.") for reference in references):
            sample.data[extension] = _read_metadata(stream, member, url)
    if sample is not None:
        yield sample


def _read_metadata(stream: BinaryIO, member: tarfile.TarInfo, url: str) -> bytes:
    if member.size > _MAX_METADATA_BYTES:
        raise PsclapError(f"{url}: {member.name} has {member.size} bytes, too many for text or JSON; correct fields")
    stream.seek(member.offset_data)
    return stream.read(member.size)


def _members(stream: BinaryIO, url: str) -> Iterator[tarfile.TarInfo]:
    """The files of a tar, by its headers alone. Raises PsclapError where it does not end as a tar ends."""
    if _COMPRESSED.match(stream.read(10)):
        raise PsclapError(f"{url} is compressed: its members cannot be read one by one; decompress it once")
    stream.seek(0)
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            while (member := tar.next()) is not None:
                if member.isfile() and not member.issparse():
                    yield member
                elif not member.isdir():
                    raise PsclapError(f"{url}: {member.name} is a link or another special file; pack its bytes")
            _check_end(stream, tar.offset, url)
    except tarfile.TarError as error:
        raise PsclapError(f"{url} is no whole tar file: {error}; copy it once more") from error


def _check_end(stream: BinaryIO, offset: int, url: str) -> None:
    """Raises PsclapError for a broken header, which tarfile takes for the end, and where several tars were joined."""
    stream.seek(offset)
    found_end = False
    while chunk := stream.read(1 << 20):
        found_end = True
        if chunk.strip(b"\0"):
            raise PsclapError(
                f"{url} is broken at byte {offset}, or holds another tar from there on; pack its files into one tar"
            )
    if not found_end:
        raise PsclapError(f"{url} is cut off: it has no end mark at byte {offset}; copy it once more")


def _resolve(sample: _Sample, reference: str, where: str) -> Any:
    """What `EXTENSION` or `EXTENSION.FIELD...` refers to; a question mark behind it allows that it is absent."""
    name, optional = reference.removesuffix("?"), reference.endswith("?")
    parts = name.split(".")
    for number in range(len(parts), 0, -1):
        extension = ".".join(parts[:number])
        if extension in sample.data:
            try:
                return _inside(sample.data[extension], parts[number:])
            except KeyError:
                break
            except ValueError as error:
                raise PsclapError(f"{where}: {extension} cannot be read: {error}") from error
    if optional:
        return None
    raise _IncompleteError(
        f"{where} has no {name}, only {sorted(sample.places)}; write {name}? where it may be absent, "
        "or set skip_incomplete to leave such samples out"
    )


def _inside(data: bytes, path: list[str]) -> Any:
    """Text, or the value at a path of keys in JSON; raises KeyError where there is none, ValueError for other data."""
    if not path:
        return data.decode().strip()
    value = json.loads(data)
    for key in path:
        if not isinstance(value, Mapping):
            raise KeyError(key)
        value = value[key]
    return value
