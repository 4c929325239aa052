"""Batches of like sizes within a budget: little padding, bounded memory, in any order of arrival."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def windows(items: Iterable[T], size_of: Callable[[T], float], window: float) -> Iterator[list[T]]:
    """Yields lists of successive items whose sizes sum to `window` or just above it; the last may be smaller.

    >>> list(windows([3, 1, 2, 5], lambda size: size, 4))
    [[3, 1], [2, 5]]
    """
    held: list[T] = []
    left = window
    for item in items:
        held.append(item)
        left -= size_of(item)
        if left <= 0:
            yield held
            held, left = [], window
    if held:
        yield held


def within_budget(sizes: Sequence[float], budget: float) -> Iterator[np.ndarray]:
    """Yields the numbers of the items of each batch, the largest items first.

    Padded to its largest item, a batch has at most the size `budget`; an item above it is a batch of its own.

    >>> [batch.tolist() for batch in within_budget([1.0, 9.0, 2.0, 2.0], 4.0)]
    [[1], [2, 3], [0]]
    """
    order = np.argsort(-np.asarray(sizes), kind="stable")
    start = 0
    while start < len(order):
        fitting = int(budget // max(sizes[order[start]], 1e-9))
        end = start + min(max(1, fitting), len(order) - start)
        yield order[start:end]
        start = end
