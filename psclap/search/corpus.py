"""Finding clips by description, or by a clip like them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psclap.errors import PsclapError
from psclap.search.exact import MAX_NORM, Hits, search_block, search_exactly
from psclap.search.index import FACTS_NAME, VectorIndex
from psclap.search.scored import ScoredOutput
from psclap.search.where import Where

FEW_ROWS = 50_000
"""So many rows or fewer that a filter leaves are searched exactly: it takes no longer than an approximation."""


class EmbeddedCorpus:
    """Clips (or windows of clips) with their embeddings, and the model that made them."""

    def __init__(self, source: VectorIndex | ScoredOutput):
        self._source = source

    @classmethod
    def load(cls, folder: Path | str, windows: bool = False) -> EmbeddedCorpus:
        """Opens an index that `build_index` made, or an output of the scoring job, whose Parquet each search reads.

        `windows` chooses the windows of an output; an index is of the one or the other. Raises PsclapError for a
        folder that is neither, and for an index that is damaged or older than its output.
        """
        if not (Path(folder) / FACTS_NAME).is_file():
            return cls(ScoredOutput(folder, windows))
        index = VectorIndex(folder)
        if windows and not index.facts["windows"]:
            raise PsclapError(f"{folder} is an index of clips; make one of windows with `psclap index --windows`")
        return cls(index)

    @property
    def model(self) -> str:
        """The model that made the embeddings."""
        return self._source.model

    @property
    def weights_sha256(self) -> str:
        """The hash of its weights."""
        return self._source.weights_sha256

    @property
    def columns(self) -> list[str]:
        """The columns of metadata."""
        return self._source.schema.names

    def __len__(self) -> int:
        return self._source.num_rows

    def search(
        self,
        query: np.ndarray,
        top: int = 10,
        *,
        where: str | None = None,
        columns: Sequence[str] | None = None,
        probes: int | None = None,
        exact: bool = False,
    ) -> list[dict[str, Any]]:
        """The `top` clips nearest to a query embedding (D,), best first: their metadata and `score`, the cosine.

        As `search_many`.
        """
        return self.search_many(np.asarray(query)[None], top, where=where, columns=columns, probes=probes, exact=exact)[
            0
        ]

    def search_many(
        self,
        queries: np.ndarray,
        top: int = 10,
        *,
        where: str | None = None,
        columns: Sequence[str] | None = None,
        probes: int | None = None,
        exact: bool = False,
    ) -> list[list[dict[str, Any]]]:
        """As `search`, for queries (Q, D), which share one pass over the vectors.

        `where` filters by metadata (`psclap.search.where`); `columns` are those of the metadata to give, default
        all. An approximate index is used where there is one and `exact` is False: `probes` of its lists are looked
        into, default as many as reached a recall of 0.95 when it was built. It is left aside where a filter leaves
        few rows, or it found fewer than were asked for. Of equal scores the lower row comes first.
        Raises PsclapError for queries of another width or not of length 1, unknown columns, and a filter that is none.
        """
        queries_QD = self._checked(queries)
        if top < 1:
            raise PsclapError(f"top {top} must be at least 1")
        names = self._checked_columns(columns)
        condition = None if where is None else Where(where, self._source.schema)
        self._check_probes(probes, exact)
        if isinstance(self._source, VectorIndex):
            found = _search_index(self._source, queries_QD, top, condition, probes, exact)
        else:
            found = search_exactly(self._source.blocks(condition), queries_QD, top)
        return self._described(found, names)

    def _described(self, found: list[Hits], columns: Sequence[str]) -> list[list[dict[str, Any]]]:
        """The metadata of the rows found, which are read together, with their scores."""
        rows = iter(self._source.rows([row for hits in found for row in hits.rows], columns))
        return [[{**next(rows), "score": float(score)} for score in hits.scores] for hits in found]

    def _checked(self, queries: np.ndarray) -> np.ndarray:
        queries_QD = np.asarray(queries, np.float32)
        if queries_QD.ndim != 2:
            raise PsclapError(f"the queries have the shape {queries_QD.shape}, expected (Q, D)")
        if queries_QD.shape[1] != self._source.dim:
            raise PsclapError(
                f"the query has {queries_QD.shape[1]} dimensions and the embeddings have {self._source.dim}: "
                f"they were made by {self.model}; give that model"
            )
        lengths = np.linalg.norm(queries_QD.astype(np.float64), axis=1)
        if not (np.abs(lengths - 1) <= MAX_NORM - 1).all():
            raise PsclapError(
                f"the queries are of length {lengths.tolist()[:5]}; normalise them to 1, as an Embedder does"
            )
        return queries_QD

    def _checked_columns(self, columns: Sequence[str] | None) -> list[str]:
        if columns is None:
            return self.columns
        if unknown := [name for name in columns if name not in self.columns]:
            raise PsclapError(f"no column {', '.join(map(repr, unknown))}; there are {', '.join(self.columns)}")
        return list(columns)

    def _check_probes(self, probes: int | None, exact: bool) -> None:
        if probes is None:
            return
        if exact or probes < 1:
            raise PsclapError(f"probes {probes} must be at least 1, and exact search has none")
        if not isinstance(self._source, VectorIndex) or self._source.approximate is None:
            raise PsclapError("probes are of an approximate index; build one with `psclap index --approximate`")


def _search_index(
    index: VectorIndex, queries_QD: np.ndarray, top: int, where: Where | None, probes: int | None, exact: bool
) -> list[Hits]:
    selected = None if where is None else index.metadata.selected(where)
    rows = None if selected is None else np.flatnonzero(selected)
    if exact or index.approximate is None or (rows is not None and len(rows) <= FEW_ROWS):
        return search_exactly(index.blocks_of(rows), queries_QD, top)
    probes = probes or index.facts["approximate"]["probes"]
    num_rows = index.num_rows if rows is None else len(rows)
    widened = -(-probes * index.num_rows // num_rows)  # a filter thins the lists out
    found = []
    for query_D, near in zip(queries_QD, index.approximate.candidates(queries_QD, top, widened, selected), strict=True):
        if len(near) >= min(top, num_rows):
            found.append(search_block(near, index.vectors[near], query_D, top))
        else:
            found += search_exactly(index.blocks_of(rows), query_D[None], top)
    return found
