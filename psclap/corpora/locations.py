"""Where a corpus's files lie: names with braces and wildcards, local or remote, and opening what they stand for."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from psclap.errors import PsclapError
from psclap.storage import is_remote, resolve

_BRACES = re.compile(r"\{([^{}]*)\}")
_READ_AHEAD_BYTES = 1 << 18  # headers and metadata of several clips by one request, without fetching the audio


def expand(pattern: str, option: str) -> list[str]:
    """The files that a name stands for: `{a,b}`, `{000..010}` and the wildcards * ? [ ], local or remote.

    A name without wildcards stands for itself, whether the file exists or not. Local names come back absolute.
    Raises PsclapError that names `option` where wildcards match nothing.

    >>> expand("s3://bucket/train-{08..10}.tar", "urls")
    ['s3://bucket/train-08.tar', 's3://bucket/train-09.tar', 's3://bucket/train-10.tar']
    """
    if not is_remote(pattern) and Path(pattern).exists():
        return [str(Path(pattern).absolute())]
    files = []
    for name in _expand_braces(pattern, option):
        found = _expand_wildcards(name)
        if not found:
            raise PsclapError(f"no file matches {name} ({option}); correct the option, or put the files there")
        files += found
    return files


def _expand_braces(pattern: str, option: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    items = match[1].split(",")
    if numbers:
        items = [f"{number:0{len(numbers[1])}d}" for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    if not items or (len(items) == 1 and not numbers):
        raise PsclapError(f"{pattern} ({option}): {match[0]!r} must be alternatives {{a,b}} or a range {{000..010}}")
    tails = _expand_braces(pattern[match.end() :], option)
    return [pattern[: match.start()] + item + tail for item in items for tail in tails]


def _expand_wildcards(name: str) -> list[str]:
    # In a web address, ? begins the query.
    if not glob.has_magic(name) or name.startswith(("http://", "https://")):
        return [name if is_remote(name) else str(Path(name).absolute())]
    if not is_remote(name):
        return sorted(str(Path(path).absolute()) for path in glob.glob(name, recursive=True))  # noqa: PTH207
    filesystem, path = resolve(name)
    try:
        return sorted(filesystem.unstrip_protocol(found) for found in filesystem.glob(path))
    except Exception as error:
        raise PsclapError(f"cannot list {name}: {error}") from error


def folder_of(location: str) -> str:
    """The folder of a file, local or remote.

    >>> folder_of("s3://bucket/clips/manifest.csv")
    's3://bucket/clips'
    """
    return location.partition("?")[0].rpartition("/")[0] if is_remote(location) else str(Path(location).parent)


def suffix_of(location: str) -> str:
    """The last extension of a file's name, in lower case; a query behind a web address does not count.

    >>> suffix_of("https://example.org/Clips.CSV?version=2")
    '.csv'
    """
    return Path(location.partition("?")[0] if is_remote(location) else location).suffix.lower()


@contextmanager
def open_binary(location: str) -> Iterator[BinaryIO]:
    """A file to read and to seek in; of a remote one only the parts that are read are fetched.

    Raises PsclapError where there is none, or where it cannot be read.
    """
    try:
        stream = _open(location)
    except PsclapError:
        raise
    except FileNotFoundError as error:
        raise PsclapError(f"there is no file {location}; correct corpus.options, or put the file there") from error
    # Each file system of fsspec raises its client's own errors: botocore's, aiohttp's.
    except Exception as error:
        raise PsclapError(f"cannot open {location}: {error}") from error
    with stream:
        try:
            yield stream
        except OSError as error:
            raise PsclapError(f"cannot read {location}: {error}") from error


def _open(location: str) -> BinaryIO:
    if not is_remote(location):
        return open(location, "rb")
    filesystem, path = resolve(location)
    return filesystem.open(path, "rb", block_size=_READ_AHEAD_BYTES, cache_type="readahead")
