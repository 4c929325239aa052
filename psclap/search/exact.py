"""The best rows by cosine, exactly: one pass over blocks of vectors, in bounded memory.

Q queries, B rows of a block, D dimensions. A product of matrices in float32 says which rows of a block may be among
the best; these few are scored again in float64, row by row. So the result is that of sorting all scores, and does
not depend on the size of the blocks, on the number of threads or on the other queries: rows of one vector have one
score, and of equal scores the lower row comes first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from psclap.parallel import available_cpus

Block = tuple[np.ndarray, np.ndarray]
"""(B,) row numbers, ascending, and (B, D) their vectors, float16 or float32."""

BLOCK_ROWS = 2048
"""So many rows stay in a core's cache while they are widened to float32 and multiplied."""

_SERIAL_NUMEL = 32_000
"""Torch copies fewer than 32,768 numbers (its grain size) in the thread that asks, more by its pool of threads."""

_FEW_QUERIES = 4
_MAX_THREADS = 4  # more wait for the memory
_RESCORED_ROWS = 1024
MAX_NORM = 1.01
"""Vectors are L2-normalised; what float16 rounds is far below this."""


@dataclass(frozen=True)
class Hits:
    """The rows (K,) that a query found, best first, and their scores (K,)."""

    rows: np.ndarray
    scores: np.ndarray


def search_exactly(blocks: Iterable[Block], queries_QD: np.ndarray, top: int) -> list[Hits]:
    """The `top` rows (or all, where there are fewer) of the blocks for each query.

    A few queries are multiplied by up to four threads of ours, many by the threads of BLAS.
    """
    if len(queries_QD) > _FEW_QUERIES:
        return _best_of(blocks, queries_QD, top).hits
    threads, shared = min(available_cpus(), _MAX_THREADS), _Shared(iter(blocks))
    with ThreadPoolExecutor(threads) as pool:
        try:
            first, *others = pool.map(_best_of, [shared] * threads, [queries_QD] * threads, [top] * threads)
        finally:
            shared.stop()  # on Ctrl-C the threads end with their blocks, not with the corpus
    for other in others:
        first.merge(other)
    return first.hits


def search_block(rows: np.ndarray, vectors_BD: np.ndarray, query_D: np.ndarray, top: int) -> Hits:
    """The `top` rows of one block for one query."""
    return _best_of([(rows, vectors_BD)], query_D[None], top).hits[0]


def _best_of(blocks: Iterable[Block], queries_QD: np.ndarray, top: int) -> _Best:
    best = _Best(queries_QD, top)
    for rows, vectors in blocks:
        best.add(rows, vectors)
    return best


class _Shared(Iterator[Block]):
    """An iterator that several threads draw from."""

    def __init__(self, blocks: Iterator[Block]):
        self._blocks, self._lock, self._stopped = blocks, threading.Lock(), False

    def __next__(self) -> Block:
        with self._lock:
            if self._stopped:
                raise StopIteration
            return next(self._blocks)

    def stop(self) -> None:
        self._stopped = True


class _Best:
    """The best `top` rows of each query among those added."""

    def __init__(self, queries_QD: np.ndarray, top: int):
        self._queries_QD, self._top = queries_QD, top
        self._queries_exact = queries_QD.astype(np.float64)
        self.hits = [Hits(np.empty(0, np.int64), np.empty(0)) for _ in queries_QD]
        # |float32 product - exact| <= gamma_D * |query| * |row|, in whatever order it is summed
        # (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
        rounding = queries_QD.shape[1] * 2.0**-24
        self._errors_Q = rounding / (1 - rounding) * np.linalg.norm(self._queries_exact, axis=1) * MAX_NORM

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        rough_QB = self._products(widened(vectors))
        floors_Q = np.array([self._floor(query) for query in range(len(rough_QB))])
        for query in np.flatnonzero(rough_QB.max(axis=1, initial=-np.inf) >= floors_Q).tolist():
            near = self._near(rough_QB[query], floors_Q[query], self._errors_Q[query])
            scores = _dots(vectors, near, self._queries_exact[query])
            self._take(query, Hits(rows[near], scores))

    def merge(self, other: _Best) -> None:
        for query, hits in enumerate(other.hits):
            self._take(query, hits)

    def _products(self, vectors_BD: np.ndarray) -> np.ndarray:
        """(Q, B) in float32. BLAS would start its threads for every block, and wait for them on a busy machine."""
        if len(self._queries_QD) <= _FEW_QUERIES:
            return np.einsum("qd,bd->qb", self._queries_QD, vectors_BD)
        return self._queries_QD @ vectors_BD.T

    def _floor(self, query: int) -> float:
        """What a row's product must reach for its score to be among the best so far."""
        hits = self.hits[query]
        return hits.scores[-1] - self._errors_Q[query] if len(hits.rows) == self._top else -np.inf

    def _near(self, rough_B: np.ndarray, floor: float, error: float) -> np.ndarray:
        near = np.flatnonzero(rough_B >= floor)
        if len(near) <= 4 * self._top:
            return near
        # At least `top` of the rows score this product less one error, so the best ones' products lack at most two.
        kth = np.partition(rough_B[near], -self._top)[-self._top]
        return near[rough_B[near] >= kth - 2 * error]

    def _take(self, query: int, found: Hits) -> None:
        hits = self.hits[query]
        rows, scores = np.concatenate([hits.rows, found.rows]), np.concatenate([hits.scores, found.scores])
        best = np.lexsort((rows, -scores))[: self._top]
        self.hits[query] = Hits(rows[best], scores[best])


def widened(vectors_BD: np.ndarray) -> np.ndarray:
    """The vectors in float32: by torch, since numpy widens float16 twenty times slower, and without torch's threads.

    float16 vectors must be writable, as torch asks, though nothing writes to them.
    """
    if vectors_BD.dtype == np.float32:
        return vectors_BD
    rows = max(1, _SERIAL_NUMEL // vectors_BD.shape[1])
    wide = torch.empty(vectors_BD.shape)
    for target, source in zip(wide.split(rows), torch.from_numpy(vectors_BD).split(rows), strict=True):
        target.copy_(source)
    return wide.numpy()


def _dots(vectors_BD: np.ndarray, near: np.ndarray, query_D: np.ndarray) -> np.ndarray:
    """(len(near),) float64 scores of some rows; each is summed alike wherever its row stands."""
    parts = [near[start : start + _RESCORED_ROWS] for start in range(0, len(near), _RESCORED_ROWS)]
    return np.concatenate([(vectors_BD[part] * query_D).sum(axis=1) for part in parts] or [np.empty(0)])
