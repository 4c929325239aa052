"""Long recordings in windows of equal length, cut while they are decoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from psclap.decoding import Wave


def cut(blocks: Iterable[Wave], window: int | None, hop: int) -> Iterator[tuple[int, Wave]]:
    """Yields (first sample, wave) of each window of a recording that comes in parts.

    A recording of at most `window` samples (or any, where None) is one window. Of a longer one every window has
    `window` samples; they begin `hop` samples apart, and the last ends with the recording. No more than a window, a
    hop and a part are held.

    >>> [(start, len(wave)) for start, wave in cut([np.zeros(70), np.zeros(35)], 40, 30)]
    [(0, 40), (30, 40), (60, 40), (65, 40)]
    """
    if window is None:
        yield 0, np.concatenate([*blocks])
        return
    held, start, is_long = np.empty(0, np.float32), 0, False
    for block in blocks:
        held = np.concatenate([held, block])
        if not is_long and len(held) > window:
            is_long = True
            yield 0, held[:window].copy()
        while is_long and len(held) >= hop + window:
            held, start = held[hop:], start + hop
            yield start, held[:window].copy()
    if not is_long:
        yield 0, held
    elif len(held) > window:
        yield start + len(held) - window, held[-window:].copy()
