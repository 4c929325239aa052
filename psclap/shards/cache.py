"""A folder of files fetched from remote storage, bounded in bytes and shared by all processes that see it.

A file is named by its hash: it is fetched once, checked, and never stale. The least recently used go first. Other
files in the folder are neither counted nor touched.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from psclap import storage
from psclap.errors import PsclapError
from psclap.shards import REBUILD

_CHUNK = 8 << 20
_WAIT_S = 0.1  # for others to finish, where what they fetch fills the cache
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OURS = re.compile(rf"{_SHA256.pattern}(\.partial)?")


def cache_folder() -> Path:
    """Where fetched files are kept: the environment's PSCLAP_CACHE_DIR, else ~/.cache/psclap."""
    return Path(os.environ.get("PSCLAP_CACHE_DIR") or Path.home() / ".cache" / "psclap")


@dataclass(frozen=True)
class RemoteFile:
    """A file that never changes: where it lies, how long it is and its SHA-256, which names it in the cache."""

    url: str
    num_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        """Raises PsclapError for a hash that is none: as a name, it could be that of a file elsewhere."""
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise PsclapError(
                f"{self.url}: its SHA-256 is {self.sha256!r}, expected 64 hexadecimal digits; the summary of its data "
                "set is damaged or forged: build the data set anew"
            )


@dataclass(frozen=True)
class FileCache:
    """At most `max_bytes` of files in `folder`."""

    folder: Path
    max_bytes: int

    def open(self, file: RemoteFile) -> int:
        """A file descriptor of the fetched file, for the caller to close; it stays readable when the file goes.

        Raises PsclapError where it cannot be fetched, has other bytes, or is larger than the whole cache, and where
        the folder cannot be written.
        """
        with _usable(self.folder):
            path = self.folder / file.sha256
            while True:
                try:
                    descriptor = os.open(path, os.O_RDONLY)
                except FileNotFoundError:
                    self._fetch(file, path)
                else:
                    os.utime(descriptor)  # its last use: what eviction goes by
                    return descriptor

    def check_disk(self) -> None:
        """Raises PsclapError where the disk has no room for `max_bytes`."""
        with _usable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / "room.lock"):
                room = shutil.disk_usage(self.folder).free + sum(size for _, size, _ in self._files())
        if room < self.max_bytes:
            raise PsclapError(
                f"resources.loading.shard_cache_gb: the disk of {self.folder} has room for {room / 1e9:.3g} GB, "
                f"not for {self.max_bytes / 1e9:.3g}; lower it, or set PSCLAP_CACHE_DIR to a folder on a larger disk"
            )

    def _fetch(self, file: RemoteFile, path: Path) -> None:
        """Fetches a file, or waits for the process that does. Whoever holds the partial file's lock is that one."""
        if file.num_bytes > self.max_bytes:
            raise PsclapError(
                f"{file.url} has {file.num_bytes} bytes, more than the whole cache of {self.max_bytes} in "
                f"{self.folder}; raise resources.loading.shard_cache_gb"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{file.sha256}.partial")
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if not _is_still(partial, stream):  # it was finished, or given up, while this process waited
                return
            try:
                if path.exists():
                    partial.unlink()
                    return
                self._reserve(stream, file.num_bytes)
                _download(file, stream)
                with _locked(self.folder / "room.lock"):
                    partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    def _reserve(self, stream: BinaryIO, num_bytes: int) -> None:
        """Evicts until `num_bytes` more fit, and takes them, so that fetches side by side stay in the bound."""
        while True:
            with _locked(self.folder / "room.lock"):
                files = self._files()
                total = sum(size for _, size, _ in files) + num_bytes
                for path, size, _ in sorted(files, key=lambda entry: entry[2]):
                    if total > self.max_bytes and _removed(path):
                        total -= size
                if total <= self.max_bytes:
                    os.truncate(stream.fileno(), num_bytes)
                    return
            time.sleep(_WAIT_S)

    def _files(self) -> list[tuple[Path, int, int]]:
        """(path, bytes, time of last use) of every file of the cache. Called with the room's lock held."""
        found = []
        for entry in os.scandir(self.folder):
            try:
                status = entry.stat()
            except FileNotFoundError:  # a partial file that its process gave up
                continue
            if _OURS.fullmatch(entry.name):
                found.append((Path(entry.path), status.st_size, status.st_mtime_ns))
        return found


def _is_still(path: Path, stream: BinaryIO) -> bool:
    """Whether the open file is the one that stands at `path`."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _removed(path: Path) -> bool:
    """Removes a file that no process writes, and says whether. One that was killed has lost its lock.

    The lock is held until the file is gone: a process that opened it in the meantime then sees that it is, and begins
    anew, where it would otherwise write a file without a name.
    """
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (BlockingIOError, FileNotFoundError):  # it is being written, or was just given up
        return False
    return True


def _download(file: RemoteFile, out: BinaryIO) -> None:
    digest = hashlib.sha256()
    for chunk in _chunks(file):
        digest.update(chunk)
        out.write(chunk)
    out.flush()
    if digest.hexdigest() != file.sha256:
        raise PsclapError(
            f"{file.url} is not what the summary of its data set says: SHA-256 {digest.hexdigest()[:12]}..., "
            f"expected {file.sha256[:12]}...; it was changed or damaged: build the data set anew"
        )
    os.fsync(out.fileno())


def _chunks(file: RemoteFile) -> Iterator[bytes]:
    """The file's bytes, and not more than it is said to have."""
    left = file.num_bytes
    try:
        with storage.reaching(file.url):
            filesystem, path = storage.resolve(file.url)
            source = filesystem.open(path, "rb", block_size=_CHUNK)
    except FileNotFoundError as error:
        raise PsclapError(f"{file.url} is missing; {REBUILD}") from error
    with source:
        while left > 0:
            with storage.reaching(file.url):
                chunk = source.read(min(_CHUNK, left))
            if not chunk:
                return
            left -= len(chunk)
            yield chunk


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Makes what goes wrong with the cache's own disk a sentence."""
    try:
        yield
    except OSError as error:
        raise PsclapError(
            f"the cache folder {folder} cannot be used ({error.strerror or error}); set PSCLAP_CACHE_DIR to another"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file lock, which the system takes back from a process that is killed."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
