"""Approximate search by faiss: which rows are worth scoring exactly.

Vectors are sorted into lists by their nearest centroid (an inverted file), and kept there as one bit per dimension
(RaBitQ: Gao and Long, SIGMOD 2024), after a random rotation. A query looks into the `probes` lists that are nearest
to it, and the rows that seem best by their bits are scored exactly, from the vectors on disk: what comes back has
exact scores, but may lack rows.

Reading an index file is native code that trusts the file: do not open an index of people you do not trust.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from psclap.errors import PsclapError
from psclap.search.exact import BLOCK_ROWS, search_exactly, widened

APPROXIMATE_NAME = "approximate.faiss"
MIN_ROWS = 1000
_ADDED_ROWS = 16384
_ROWS_PER_CENTROID = 40  # faiss warns below 39
_MAX_SAMPLE_BYTES = 1 << 30
_MEASURED_QUERIES = 100
_MEASURED_TOP = 10
_TARGET_RECALL = 0.95
_CANDIDATES_PER_HIT = 20
_MIN_CANDIDATES = 200
_QUERIES_AT_ONCE = 64


def import_faiss() -> Any:
    """The module faiss. Raises PsclapError where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise PsclapError(
            f"approximate search needs faiss ({error}); install it with `pip install 'psclap[search]'`"
        ) from error
    return faiss


def num_lists(num_rows: int, dim: int) -> int:
    """Into how many lists vectors are sorted: a power of two near sqrt(N), few enough for a bounded sample.

    The bits are scanned so quickly that more lists would cost more when they are built than they save later.

    >>> num_lists(1_000_000, 768), num_lists(5_000_000, 768), num_lists(1000, 64)
    (1024, 2048, 16)
    """
    trainable = min(num_rows, _MAX_SAMPLE_BYTES // (4 * dim)) // _ROWS_PER_CENTROID
    return min(1 << round(np.log2(num_rows**0.5)), 1 << int(np.log2(trainable)))


def build(vectors_ND: np.ndarray, path: Path, seed: int = 0) -> dict[str, Any]:
    """Writes the faiss index of memory-mapped vectors; returns its facts, with the recall measured for some probes.

    Memory is needed for the training sample (at most 1 GiB) and the index itself. Raises PsclapError for fewer
    than MIN_ROWS rows.
    """
    faiss = import_faiss()
    num_rows, dim = vectors_ND.shape
    if num_rows < MIN_ROWS:
        raise PsclapError(
            f"{num_rows} rows are too few for an approximate index (at least {MIN_ROWS}); leave --approximate out: "
            "exact search is quicker"
        )
    lists = num_lists(num_rows, dim)
    factory = f"RR{dim},IVF{lists},RaBitQ"
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(num_rows, min(num_rows, lists * _ROWS_PER_CENTROID), replace=False))
    index.train(widened(vectors_ND[sample]))
    for start in range(0, num_rows, _ADDED_ROWS):
        index.add(widened(vectors_ND[start : start + _ADDED_ROWS]))
    faiss.write_index(index, str(path))
    facts = {"factory": factory, "lists": lists, "seed": seed}
    return facts | _measured(ApproximateIndex(path, num_rows, dim), vectors_ND, rng)


class ApproximateIndex:
    """A faiss index, memory-mapped."""

    def __init__(self, path: Path, num_rows: int, dim: int):
        """Raises PsclapError for a file that is no index of so many rows and dimensions."""
        self._faiss = import_faiss()
        try:
            self._index = self._faiss.read_index(str(path), self._faiss.IO_FLAG_MMAP | self._faiss.IO_FLAG_READ_ONLY)
            self.num_lists = self._faiss.extract_index_ivf(self._index).nlist
        except RuntimeError as error:
            raise PsclapError(f"{path} is no whole faiss index; build the index anew with `psclap index`") from error
        if (self._index.ntotal, self._index.d) != (num_rows, dim):
            raise PsclapError(
                f"{path} has {self._index.ntotal} rows of {self._index.d} dimensions, and the vectors beside it "
                f"{num_rows} of {dim}; build the index anew with `psclap index`"
            )

    def candidates(
        self, queries_QD: np.ndarray, top: int, probes: int, selected: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        """For each query the rows, ascending, that may be among its best; of those `selected` (N,) bool, if given."""
        # faiss keeps pointers to what these are made of: each has a name here until the last search is done.
        bits = None if selected is None else np.packbits(selected, bitorder="little")
        selector = None if bits is None else self._faiss.IDSelectorBitmap(bits)
        ivf = self._faiss.SearchParametersIVF(nprobe=min(probes, self.num_lists), sel=selector)
        parameters = self._faiss.SearchParametersPreTransform(index_params=ivf)
        count = min(max(_MIN_CANDIDATES, _CANDIDATES_PER_HIT * top), self._index.ntotal)
        for start in range(0, len(queries_QD), _QUERIES_AT_ONCE):
            _, found_QK = self._index.search(queries_QD[start : start + _QUERIES_AT_ONCE], count, params=parameters)
            for found in found_QK:
                yield np.sort(found[found >= 0])


def _measured(index: ApproximateIndex, vectors_ND: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """The recall at 10 of rows as queries, the row itself left out, by the number of probes; and the fewest that do."""
    queries = np.sort(rng.choice(len(vectors_ND), min(_MEASURED_QUERIES, len(vectors_ND)), replace=False))
    queries_QD = widened(vectors_ND[queries])
    starts = range(0, len(vectors_ND), BLOCK_ROWS)
    blocks = ((np.arange(start, start + len(part := vectors_ND[start : start + BLOCK_ROWS])), part) for start in starts)
    exact = search_exactly(blocks, queries_QD, _MEASURED_TOP + 1)
    nearest = [
        set(hits.rows[hits.rows != row][:_MEASURED_TOP].tolist()) for hits, row in zip(exact, queries, strict=True)
    ]
    recalls: dict[str, float] = {}
    probes = 1
    while probes <= index.num_lists:
        found = index.candidates(queries_QD, _MEASURED_TOP + 1, probes)
        shares = [len(near & set(rows.tolist())) / max(1, len(near)) for near, rows in zip(nearest, found, strict=True)]
        recalls[str(probes)] = round(float(np.mean(shares)), 4)
        if recalls[str(probes)] >= _TARGET_RECALL:
            break
        probes *= 2
    return {"recall_at_10": recalls, "probes": min(probes, index.num_lists)}
