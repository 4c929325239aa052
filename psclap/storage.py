"""Bytes by location: a local path, or a URL of any file system that fsspec knows (s3://, gs://, https://).

A reference to audio is a location, or a location with a byte range, `LOCATION#bytes=OFFSET+LENGTH`: a member of
a tar file, read without the rest of it.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from psclap.errors import PsclapError
from psclap.files import atomic_file

_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")
_SIGNATURES = re.compile(
    r"([?&](?:x-amz-(?:signature|credential|security-token)|x-goog-signature|signature|sig|token|access_token"
    r"|api_?key|password)=)[^&#\s'\"]+",
    re.IGNORECASE,
)
_SECRET_NAMES = re.compile(r"(PASSWORD|TOKEN|SECRET|SECRET_(ACCESS_)?KEY|API_KEY|ACCOUNT_KEY|CONNECTION_STRING)$")
_MIN_SECRET_CHARS = 8  # a shorter one may be a word of any text
_CHUNK_BYTES = 1 << 20
_BYTE_RANGE = re.compile(r"(?P<location>.+)#bytes=(?P<offset>\d+)\+(?P<length>\d+)")


def is_remote(location: str | Path) -> bool:
    """Whether a location is a URL.

    >>> is_remote("s3://bucket/shards"), is_remote("/data/shards")
    (True, False)
    """
    return "://" in str(location)


def redacted(text: str) -> str:
    """A text without secrets: users, passwords and signatures in URLs, and values of variables such as HF_TOKEN.

    >>> redacted("http://me:secret@host:5000/x?sig=a8f&page=2")
    'http://host:5000/x?sig=***&page=2'
    """
    text = _SIGNATURES.sub(r"\1***", _CREDENTIALS.sub("", text))
    for name, value in os.environ.items():
        if len(value) >= _MIN_SECRET_CHARS and value in text and _SECRET_NAMES.search(name):
            text = text.replace(value, "***")
    return text


def has_credentials(text: str) -> bool:
    """Whether a text holds a URL with a user or a password in it.

    >>> has_credentials("s3://key:secret@bucket/x"), has_credentials("s3://bucket/a@b"), has_credentials("models:/x@y")
    (True, False, False)
    """
    return bool(_CREDENTIALS.search(text))


def check_no_credentials(location: str | Path, what: str) -> None:
    """Raises PsclapError for a URL with credentials: what is made of the file would name it, and so hold them."""
    if has_credentials(str(location)):
        raise PsclapError(f"{what} {redacted(str(location))!r} was given with {NO_CREDENTIALS}")


NO_CREDENTIALS = (
    "a user or a password in its URL, which would be stored with what is made of it; leave them out and set them in "
    "the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what the storage's own package reads"
)
"""The rest of the sentence that refuses them."""


def join(location: str | Path, name: str) -> str:
    """A name inside a folder, local or remote.

    >>> join("s3://bucket/shards/", "index.parquet")
    's3://bucket/shards/index.parquet'
    """
    return f"{str(location).rstrip('/')}/{name}"


def byte_range(location: str | Path, offset: int, length: int) -> str:
    """The reference to `length` bytes of a file.

    >>> byte_range("a.tar", 512, 100)
    'a.tar#bytes=512+100'
    """
    return f"{location}#bytes={offset}+{length}"


def parse_reference(reference: str | Path) -> tuple[str, int, int | None]:
    """(location, offset, length) of a reference; length None is the whole file.

    >>> parse_reference("a.tar#bytes=512+100"), parse_reference("a.wav")
    (('a.tar', 512, 100), ('a.wav', 0, None))
    """
    match = _BYTE_RANGE.fullmatch(str(reference))
    if match is None:
        return str(reference), 0, None
    return match["location"], int(match["offset"]), int(match["length"])


def read(reference: str | Path) -> bytes:
    """The bytes that a reference points at.

    Raises FileNotFoundError where there is no such file, PsclapError where it cannot be read or is shorter than
    the byte range.
    """
    location, offset, length = parse_reference(reference)
    with reaching(location):
        data = _read_remote(location, offset, length) if is_remote(location) else _read_local(location, offset, length)
    if length is not None and len(data) != length:
        raise PsclapError(f"{location} is cut off: {len(data)} of the {length} bytes at offset {offset} are there")
    return data


def read_bounded(location: str | Path, max_bytes: int) -> bytes:
    """The bytes of a whole file that others chose: of a larger one than `max_bytes`, no more than that is fetched.

    Raises as `read`, and PsclapError for a larger file and for a name that is no plain file's.
    """
    with reaching(location), _open_bounded(str(location)) as stream:
        parts, left = [], max_bytes + 1
        while left > 0 and (part := stream.read(min(left, _CHUNK_BYTES))):  # a web server gives what it has just now
            parts.append(part)
            left -= len(part)
    if left <= 0:
        raise PsclapError(f"{redacted(str(location))} has more than {max_bytes} bytes; give a smaller file")
    return b"".join(parts)


def _open_bounded(location: str) -> Any:
    if not is_remote(location):
        if not Path(location).is_file():  # a pipe would be waited for
            raise FileNotFoundError(location)
        return open(location, "rb")
    filesystem, path = resolve(location)
    if location.lower().startswith(("http://", "https://")):
        # As a stream: asked for a range, a server may still send everything, and fsspec would take it. With a size,
        # whatever it is, fsspec does not ask for it first, which would make every failure a missing file.
        return filesystem.open(path, "rb", block_size=0, size=1)
    return filesystem.open(path, "rb")


def _read_local(path: str, offset: int, length: int | None) -> bytes:
    with open(path, "rb") as stream:
        if length is None:
            return stream.read()
        return os.pread(stream.fileno(), length, offset)


def _read_remote(url: str, offset: int, length: int | None) -> bytes:
    filesystem, path = resolve(url)
    if length is None:  # asked for by a range, an empty file is an error on S3
        return filesystem.cat_file(path)
    return filesystem.cat_file(path, start=offset, end=offset + length)


@contextmanager
def reaching(location: str | Path) -> Iterator[None]:
    """Makes what a file system raises a PsclapError that names the location; FileNotFoundError stays as it is."""
    try:
        yield
    except (FileNotFoundError, PsclapError):
        raise
    except Exception as error:  # the packages for remotes have errors of their own, such as for credentials
        if not isinstance(error, OSError) and not is_remote(location):
            raise
        reason = getattr(error, "strerror", None) or error
        raise PsclapError(redacted(f"cannot reach {location}: {reason}")) from error


@contextmanager
def writing(location: str | Path) -> Iterator[Path]:
    """Yields a local path to write to; on success its content stands at `location`, whole, else nothing does."""
    if not is_remote(location):
        with atomic_file(location) as partial:
            yield partial
        return
    with tempfile.TemporaryDirectory(prefix="psclap-") as folder:
        path = Path(folder) / "file"
        yield path
        upload(path, location)


def upload(path: Path, location: str | Path) -> None:
    """Copies a local file to a remote location, where it stands whole or not at all."""
    with reaching(location):
        filesystem, target = resolve(location)
        try:
            filesystem.put_file(str(path), target)
        except FileNotFoundError as error:  # of the bucket
            raise PsclapError(f"cannot write {location}: {error}; make the bucket, or correct the URL") from error


def download(location: str | Path, path: Path) -> None:
    """Copies a remote file here. Raises FileNotFoundError where there is none."""
    with reaching(location):
        filesystem, source = resolve(location)
        filesystem.get_file(source, str(path))


def sizes(folder: str | Path) -> dict[str, int]:
    """The bytes of every file right in a folder, by name; none where there is no such folder."""
    try:
        with reaching(folder):
            if not is_remote(folder):  # links, which DVC may make of files, count as the files
                return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
            filesystem, path = resolve(folder)
            filesystem.invalidate_cache()
            listed = filesystem.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    return {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry["size"] for entry in listed if entry["type"] == "file"}


def folders(folder: str | Path) -> list[str]:
    """The names of the folders right in a folder, in order; none where there is no such folder."""
    try:
        with reaching(folder):
            filesystem, path = resolve(folder)
            filesystem.invalidate_cache()
            listed = filesystem.ls(path, detail=True)
    except FileNotFoundError:
        return []
    return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in listed if entry["type"] == "directory")


def remove(location: str | Path) -> None:
    """Removes a file, or a folder with what is in it; it may be absent, and others may be removing it too."""
    with reaching(location):
        filesystem, path = resolve(location)
        filesystem.invalidate_cache()
        while filesystem.exists(path):
            with suppress(FileNotFoundError):  # another was quicker, maybe with a part of it
                filesystem.rm(path, recursive=True)
            filesystem.invalidate_cache()


def resolve(location: str | Path) -> tuple[Any, str]:
    """The fsspec file system of a location, and the path on it.

    Raises PsclapError for a protocol that fsspec does not know, or whose package is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(str(location))
    except (ImportError, ValueError) as error:
        raise PsclapError(f"cannot reach {location}: {error}") from error
