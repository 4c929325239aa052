"""Keys of clips, which name files in shards: of safe characters, unique and short."""

from __future__ import annotations

import hashlib
import re

from psclap.errors import PsclapError

MAX_KEY_BYTES = 90
_KEY = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY_BYTES}}}")
_SEGMENT = r"[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+)*"
_REVERSIBLE_NAME = re.compile(rf"(?:{_SEGMENT}/)*{_SEGMENT}")
_REVERSIBLE_PATH = re.compile(rf"{_REVERSIBLE_NAME.pattern}\.[A-Za-z0-9]+")


def safe_key(path: str) -> str:
    """A clip's key from the path of its audio: of safe characters, unique, at most 90 bytes.

    A hash of the path is added where the path cannot be told from the key: where it is too long, or where other
    characters than slashes and the last dot had to be replaced.

    >>> safe_key("speaker1/clip-3.wav"), safe_key("Müller/1.wav")
    ('speaker1--clip-3_wav', 'M_ller--1_wav-c19dccf4e8')
    """
    return _safe(path) if _REVERSIBLE_PATH.fullmatch(path) and _fits(path) else hashed_key(path, MAX_KEY_BYTES)


def safe_sample_key(name: str) -> str:
    """The same from a sample's name in a tar, which has no extension.

    >>> safe_sample_key("part1/clip_3")
    'part1--clip_3'
    """
    return _safe(name) if _REVERSIBLE_NAME.fullmatch(name) and _fits(name) else hashed_key(name, MAX_KEY_BYTES)


def hashed_key(path: str, max_bytes: int) -> str:
    """The end of a path in safe characters and a hash of the whole, together at most `max_bytes`."""
    data = path.encode("utf-8", "surrogatepass")  # the names in a tar need not be UTF-8
    digest = hashlib.sha256(data).hexdigest()[:10]
    return f"{_safe(path)[-(max_bytes - 11) :]}-{digest}"


def _safe(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", path.replace("/", "--"))


def _fits(path: str) -> bool:
    return len(_safe(path)) <= MAX_KEY_BYTES


def check_key(key: str, where: str) -> str:
    """Returns the key. Raises PsclapError where it cannot name a file in a shard."""
    if not _KEY.fullmatch(key):
        raise PsclapError(
            f"{where}: key {key!r} must be 1 to {MAX_KEY_BYTES} letters, digits, - and _; "
            "rename it, or set columns.key to null: keys are then made from the audio's path"
        )
    return key
