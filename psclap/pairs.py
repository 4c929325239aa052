"""Which candidates are right for which query, as a list of pairs: a matrix of 100,000 x 20,000 would be 2 GB of False.

Axes: Q queries, C candidates, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class Pairs:
    """A relation in compressed rows: those of query q are `numbers[offsets[q] : offsets[q + 1]]`, ascending, distinct.

    >>> right = Pairs.of([1, 0, 1], [2, 2, 0], num_queries=2, num_candidates=3)
    >>> right.of_query(1).tolist(), right.transposed.of_query(2).tolist()
    ([0, 2], [0, 1])
    """

    offsets: np.ndarray  # (Q + 1,)
    numbers: np.ndarray  # (P,) of candidates
    num_candidates: int

    @classmethod
    def of(cls, queries_P: ArrayLike, candidates_P: ArrayLike, num_queries: int, num_candidates: int) -> Pairs:
        """The relation of pairs in any order; a pair that is there twice counts once."""
        pairs = np.unique(np.asarray(queries_P, np.int64) * num_candidates + np.asarray(candidates_P, np.int64))
        queries, numbers = np.divmod(pairs, max(num_candidates, 1))
        return cls(_offsets(queries, num_queries), numbers, num_candidates)

    def __len__(self) -> int:
        """Q, the number of queries."""
        return len(self.offsets) - 1

    def of_query(self, number: int) -> np.ndarray:
        """The candidates that are right for a query."""
        return self.numbers[self.offsets[number] : self.offsets[number + 1]]

    @cached_property
    def counts(self) -> np.ndarray:
        """(Q,) how many candidates are right for each query."""
        return np.diff(self.offsets)

    @cached_property
    def queries(self) -> np.ndarray:
        """(P,) the query of each pair, ascending."""
        return np.repeat(np.arange(len(self)), self.counts)

    @cached_property
    def by_candidate(self) -> np.ndarray:
        """(P,) the order of the pairs in which `transposed` has them."""
        return np.argsort(self.numbers, kind="stable")

    @cached_property
    def transposed(self) -> Pairs:
        """The same relation with queries and candidates in each other's place."""
        order = self.by_candidate
        return Pairs(_offsets(self.numbers[order], self.num_candidates), self.queries[order], len(self))


def _offsets(ascending_P: np.ndarray, num_queries: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(ascending_P, minlength=num_queries))])
