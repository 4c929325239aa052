"""Getting at the clips of a block: local files as they lie, remote ones fetched ahead and in large pieces."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from psclap import storage
from psclap.errors import AudioError, PsclapError

_MAX_PIECE_BYTES = 8_000_000
_MAX_GAP_BYTES = 64_000
_THREADS = 4
_MAX_WAITING = 16
_MAX_WAITING_BYTES = 64_000_000
_PAUSES_S = (1.0, 4.0, 16.0)

Source = str | bytes | AudioError
"""A path to open, the bytes of a file, or why there is none."""


@dataclass
class _Piece:
    """Clips that one request brings: a file, or neighbours in one."""

    location: str
    offset: int
    length: int | None
    parts: list[tuple[int, int]] = field(default_factory=list)  # offset and length within the piece, of each clip


def sources(references: Sequence[str]) -> Iterator[Source]:
    """Yields what to decode for each reference, in order.

    A file that is not there is the clip's fault, an AudioError. Raises PsclapError where a storage does not answer in
    some tries: that is no clip's fault.
    """
    if not any(storage.is_remote(reference) for reference in references):
        yield from references
        return
    waiting: deque[Future[list[Source]]] = deque()
    with ThreadPoolExecutor(_THREADS) as threads:
        for piece in _pieces(references):
            waiting.append(threads.submit(_read, piece))
            while len(waiting) >= _MAX_WAITING or (len(waiting) > 1 and _num_bytes(waiting) > _MAX_WAITING_BYTES):
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _num_bytes(waiting: Iterable[Future[list[Source]]]) -> int:
    """Of what has come."""
    come = [source for future in waiting if future.done() and not future.exception() for source in future.result()]
    return sum(len(source) for source in come if isinstance(source, bytes))


def _pieces(references: Sequence[str]) -> Iterator[_Piece]:
    piece: _Piece | None = None
    for reference in references:
        location, offset, length = storage.parse_reference(reference)
        if piece is None or not _continues(piece, location, offset, length):
            if piece is not None:
                yield piece
            piece = _Piece(location, offset, length)
        if length is not None:
            piece.parts.append((offset - piece.offset, length))
            piece.length = offset - piece.offset + length
    if piece is not None:
        yield piece


def _continues(piece: _Piece, location: str, offset: int, length: int | None) -> bool:
    if length is None or piece.length is None or location != piece.location:
        return False
    gap = offset - (piece.offset + piece.length)
    return 0 <= gap <= _MAX_GAP_BYTES and offset + length - piece.offset <= _MAX_PIECE_BYTES


def _read(piece: _Piece) -> list[Source]:
    if piece.length is None:
        return [_fetched(piece.location)]
    whole = _fetched(storage.byte_range(piece.location, piece.offset, piece.length))
    if isinstance(whole, bytes):
        return [whole[offset : offset + length] for offset, length in piece.parts]
    # One of them may be what is wrong: each alone.
    return [
        _fetched(storage.byte_range(piece.location, piece.offset + offset, length)) for offset, length in piece.parts
    ]


def _fetched(reference: str) -> Source:
    for pause_s in (*_PAUSES_S, None):
        try:
            return storage.read(reference)
        except FileNotFoundError:
            return AudioError("missing", "there is no such file; check its path")
        except PsclapError as error:
            if _is_forbidden(error.__cause__):
                return AudioError("forbidden", f"{error}; check its permissions")
            if _ends_before(reference):
                return AudioError("truncated", f"{storage.redacted(reference)} ends too soon; fetch it again")
            if pause_s is None:
                raise
        time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")


def _is_forbidden(error: BaseException | None) -> bool:
    return isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403, 410)


def _ends_before(reference: str) -> bool:
    """Whether a file has less than the byte range that is asked of it, which storages refuse each in their way."""
    location, offset, length = storage.parse_reference(reference)
    if length is None:
        return False
    try:
        with storage.reaching(location):
            filesystem, path = storage.resolve(location)
            return filesystem.size(path) < offset + length
    except (FileNotFoundError, PsclapError):  # it does not answer now: to be tried again
        return False
