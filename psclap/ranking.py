"""Ranks by counting, in blocks: no matrix of all scores, and no sorting.

A query's rank is 1 + the number of wrong candidates above its best right one. So one pass over the scores suffices,
and a block of them serves both directions: speech to text along its rows, text to speech along its columns.

Ties must be seen as ties: a model that gives all captions one embedding is to score what guessing scores. In floating
point they are not: the same dot product comes out differently with the place of a column in a block, with the number
of threads, and from one BLAS to the next. So embeddings are rounded to whole multiples of 2^-26 first, and multiplied
in float64. Then every product and every partial sum is a whole multiple of 2^-52 below 2 in size (Cauchy-Schwarz), all
of which float64 holds exactly: the scores are exact, in whatever order they are summed. The rounding moves a cosine by
some 1e-8, less than float32's own arithmetic does.

Axes: Q queries, C candidates, D dimensions, P right pairs; q and c: those of one block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from psclap.errors import PsclapError
from psclap.metrics import Ranks, check_finite
from psclap.pairs import Pairs

BLOCK_BYTES = 64 * 2**20
"""What a block of scores and the embeddings that it is made from take, beside all embeddings."""

_BITS = 26
_COUNTED_ROWS = 255  # as many as a byte can count; their scores stay in the processor's cache
_ROWS_AT_ONCE = 4096


def ranks_of(query_QD: np.ndarray, candidate_CD: np.ndarray, right: Pairs, block_bytes: int = BLOCK_BYTES) -> Ranks:
    """The ranks of each query's best right candidate, by dot products of embeddings.

    They depend on the embeddings alone: not on `block_bytes`, the machine or its threads. Raises PsclapError for
    embeddings that are not finite, and for a query without a right candidate.

    >>> ranks_of(np.eye(2), np.array([[0.6, 0.8], [0.8, 0.6]]), Pairs.of([0, 1], [0, 1], 2, 2)).expected
    array([2., 2.])
    """
    return _Counting(query_QD, candidate_CD, right, both_ways=False).count(block_bytes)[0]


def ranks_both_ways(
    query_QD: np.ndarray, candidate_CD: np.ndarray, right: Pairs, block_bytes: int = BLOCK_BYTES
) -> tuple[Ranks, Ranks]:
    """As `ranks_of`, and that with queries and candidates in each other's place, from one product of the two."""
    of_queries, of_candidates = _Counting(query_QD, candidate_CD, right, both_ways=True).count(block_bytes)
    return of_queries, of_candidates


def ranks_of_scores(scores_QC: np.ndarray, right: Pairs) -> Ranks:
    """As `ranks_of`, from scores as they are.

    Raises PsclapError for scores that are not finite: NaN compares as neither above nor tied, and would win.

    >>> ranks_of_scores(np.array([[0.9, 0.1, 0.9]]), Pairs.of([0], [0], 1, 3)).expected
    array([1.5])
    """
    check_every_query(right)
    best = _Best(right, scores_QC[right.queries, right.numbers])
    for rows in _slices(len(scores_QC), _COUNTED_ROWS):
        check_finite(scores_QC[rows])
        best.add(scores_QC[rows], rows)
    return best.ranks()


def nearest_of(query_QD: np.ndarray, candidate_CD: np.ndarray) -> np.ndarray:
    """(Q,) the candidate of each query's highest dot product, the first where several are equal.

    Raises PsclapError for embeddings that are not finite.
    """
    query, candidate_DC = _Grid(query_QD), _Grid(candidate_CD).take(slice(None)).T
    parts = [(query.take(rows) @ candidate_DC).argmax(1) for rows in _slices(len(query), _ROWS_AT_ONCE)]
    return np.concatenate(parts)


def check_every_query(right: Pairs) -> None:
    """Raises PsclapError where a query has no right candidate, or where there is no query."""
    lacking = np.flatnonzero(right.counts == 0)
    if len(lacking) or not len(right):
        what = f"query {lacking[0]} has" if len(lacking) else "there are no queries that have"
        raise PsclapError(f"{what} no right candidate, so there is no rank; leave out what nothing is right for")


class _Counting:
    """The counts of one call: of the queries, the rows of scores; and `both_ways` of the candidates, the columns."""

    def __init__(self, query_QD: np.ndarray, candidate_CD: np.ndarray, right: Pairs, both_ways: bool):
        for relation in [right, right.transposed] if both_ways else [right]:
            check_every_query(relation)
        self._query, self._candidate = _Grid(query_QD), _Grid(candidate_CD)
        scores_P = self._pair_scores(right)
        self._best = [_Best(right, scores_P)]
        if both_ways:
            self._best.append(_Best(right.transposed, scores_P[right.by_candidate]))

    def _pair_scores(self, right: Pairs) -> np.ndarray:
        """(P,) the scores of the right pairs: exact, so the same bits as in the blocks."""
        parts = [
            np.einsum("pd,pd->p", self._query.take(right.queries[part]), self._candidate.take(right.numbers[part]))
            for part in _slices(len(right.numbers), _ROWS_AT_ONCE)
        ]
        return np.concatenate(parts)

    def count(self, block_bytes: int) -> list[Ranks]:
        size = _block_size(block_bytes, self._query.dim)
        for rows in _slices(len(self._query), size):
            query_qD = self._query.take(rows)
            for columns in _slices(len(self._candidate), size):
                self._count_block(query_qD @ self._candidate.take(columns).T, rows, columns)
        return [best.ranks() for best in self._best]

    def _count_block(self, scores_qc: np.ndarray, rows: slice, columns: slice) -> None:
        of_queries, *of_candidates = self._best
        for part in _slices(len(scores_qc), _COUNTED_ROWS):
            of_queries.add(scores_qc[part], slice(rows.start + part.start, rows.start + part.stop))
            for best in of_candidates:
                best.add_columns(scores_qc[part], columns)


class _Grid:
    """Embeddings as whole numbers of 26 bits in float64, some at a time.

    Where the longest is between 0.625 and 1.25 they are in units of 2^-26; others in another power of two, by which no
    order changes.
    """

    def __init__(self, embedding_ND: np.ndarray):
        """Raises PsclapError for embeddings that are not finite."""
        self._embedding_ND, self._units_per_one = embedding_ND, 1.0
        norm = max(float(self._norms(part).max()) for part in _slices(len(embedding_ND), _ROWS_AT_ONCE))
        if norm:
            self._units_per_one = 2.0 ** (_BITS - math.ceil(math.log2(norm / 1.25)))

    def _norms(self, rows: slice) -> np.ndarray:
        part = self._embedding_ND[rows].astype(np.float64)
        norms = np.sqrt(np.einsum("nd,nd->n", part, part))
        check_finite(norms)
        return norms

    def __len__(self) -> int:
        return len(self._embedding_ND)

    @property
    def dim(self) -> int:
        return self._embedding_ND.shape[1]

    def take(self, rows: slice | np.ndarray) -> np.ndarray:
        taken = self._embedding_ND[rows].astype(np.float64)
        taken *= self._units_per_one
        return np.rint(taken, out=taken)


class _Best:
    """The best right score of each query, and how many of the scores shown to it are above it, or reach it."""

    def __init__(self, right: Pairs, scores_P: np.ndarray):
        starts = right.offsets[:-1]
        self._score_Q = np.maximum.reduceat(scores_P, starts)
        is_best_P = scores_P == np.repeat(self._score_Q, right.counts)
        self._right_Q = np.add.reduceat(is_best_P, starts, dtype=np.int64)
        self._above_Q, self._reaching_Q = np.zeros((2, len(right)), np.int64)

    def add(self, scores_qc: np.ndarray, queries: slice) -> None:
        best_q1 = self._score_Q[queries, None]
        self._above_Q[queries] += _true_in_rows(scores_qc > best_q1)
        self._reaching_Q[queries] += _true_in_rows(scores_qc >= best_q1)

    def add_columns(self, scores_cq: np.ndarray, queries: slice) -> None:
        """As `add`, with a query in each column; of at most 255 rows."""
        best_q = self._score_Q[queries]
        self._above_Q[queries] += _true_in_columns(scores_cq > best_q)
        self._reaching_Q[queries] += _true_in_columns(scores_cq >= best_q)

    def ranks(self) -> Ranks:
        """No right candidate is above the best right one: all that are above are wrong."""
        return Ranks(self._above_Q, self._reaching_Q - self._above_Q - self._right_Q, self._right_Q)


def _true_in_rows(mask: np.ndarray) -> np.ndarray:
    # Row by row, which counts vectors of 64 bytes; count_nonzero with an axis, and sum, take three times as long.
    return np.fromiter(map(np.count_nonzero, mask), np.int64, len(mask))


def _true_in_columns(mask: np.ndarray) -> np.ndarray:
    return np.add.reduce(mask.view(np.uint8), axis=0, dtype=np.uint8)


def _block_size(block_bytes: int, dim: int) -> int:
    """Queries, and candidates, of a block: n with n * n scores and 2 * n embeddings in `block_bytes`."""
    return max(1, int(math.sqrt(dim**2 + block_bytes / 8) - dim))


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
