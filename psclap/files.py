"""Files that are whole or absent: written under a temporary name, then renamed.

A reader, or a later run, never takes half a write for the whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psclap.errors import PsclapError


def check_writable(path: Path | str) -> None:
    """Makes the folder that `path` is to stand in. Raises PsclapError where it cannot be written to."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError("no permission to write there")
    except OSError as error:
        raise PsclapError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that you may write to"
        ) from error


def check_folder_writable(path: Path | str) -> None:
    """As `check_writable`, for a folder; what stands at `path` may be another folder, but no file."""
    check_writable(path)
    if Path(path).exists() and not Path(path).is_dir():
        raise PsclapError(f"cannot write the folder {path}: a file of that name is in the way; move it")


def refuse_existing(path: Path | str) -> None:
    """Raises PsclapError where something, even a broken link, is in the way of a new file or folder."""
    if Path(path).exists() or Path(path).is_symlink():
        raise PsclapError(f"{path} exists, and nothing is overwritten; give another name, or move it")


@contextmanager
def alone(path: Path | str) -> Iterator[None]:
    """Holds a lock for the length of a `with` block: the file `path`, which stays, with the holder's process number.

    The lock ends with its process, however that ends. Raises PsclapError where another process holds it.
    """
    check_writable(path)
    with open(path, "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            raise PsclapError(
                f"process {stream.read().strip() or '?'} is at work on the same, and holds {path}; wait until it ends, "
                "or end it"
            ) from error
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


def _partial_name(path: Path) -> Path:
    check_writable(path)
    for stale in path.parent.glob(f".{path.name}.partial-*"):
        if not Path(f"/proc/{stale.name.rsplit('-', 1)[1]}").exists():  # its writer was killed
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    return path.parent / f".{path.name}.partial-{os.getpid()}"


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path to write to; on success it becomes `path`, on any failure it is removed."""
    path = Path(path)
    partial = _partial_name(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yields a temporary folder to fill; on success it replaces `path`, on any failure it is removed."""
    path = Path(path)
    check_folder_writable(path)
    partial = _partial_name(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as indented JSON; NaN is refused, because other readers refuse it too."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def sync_folder(folder: Path | str) -> None:
    """Waits until the files right in a folder, and their names, are on the disk."""
    for path in [*Path(folder).iterdir(), Path(folder)]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_file(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def library_sha256() -> str:
    """The SHA-256 of this package's own code."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def share_files(folder: Path | str) -> None:
    """Gives the files right in a folder the permissions that new files have; safetensors makes its own private."""
    folder = Path(folder)
    mode = folder.stat().st_mode & 0o666  # what the user's umask leaves
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)
