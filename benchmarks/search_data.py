"""Vectors as those of a speech-style model, made quickly: clusters (speakers) in a few correlated directions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

DIM = 768
_CLUSTERS, _DIRECTIONS = 2000, 96


class Mixture:
    """A common mean, cluster centres, and within clusters directions of falling weight, with a little noise."""

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        weights = np.arange(1, _DIRECTIONS + 1) ** -0.5
        basis = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0][:_DIRECTIONS] * weights[:, None]
        self._basis = basis.astype(np.float32)
        self._mean = (0.5 * rng.standard_normal(DIM) / DIM**0.5).astype(np.float32) * 2
        self._centres = (rng.standard_normal((_CLUSTERS, _DIRECTIONS)) @ basis).astype(np.float32)
        self._shares = rng.zipf(1.3, _CLUSTERS).clip(max=200).astype(float)
        self._shares /= self._shares.sum()
        self._gap = (rng.standard_normal(DIM) / DIM**0.5).astype(np.float32)

    def blocks(self, rows: int, seed: int, block_rows: int = 8192) -> Iterator[np.ndarray]:
        """(B, D) float16 rows, L2-normalised."""
        rng = np.random.default_rng(seed)
        for start in range(0, rows, block_rows):
            yield _unit(self._drawn(rng, min(block_rows, rows - start))).astype(np.float16)

    def speech_queries(self, count: int, seed: int) -> np.ndarray:
        """(count, D) float32 queries drawn as the rows are: speech that is not in the corpus."""
        return _unit(self._drawn(np.random.default_rng(seed), count))

    def text_queries(self, count: int, seed: int) -> np.ndarray:
        """(count, D) float32 queries moved away from all rows, as captions are (the gap between modalities)."""
        return _unit(_unit(self._drawn(np.random.default_rng(seed), count)) + self._gap)

    def _drawn(self, rng: np.random.Generator, count: int) -> np.ndarray:
        clusters = rng.choice(_CLUSTERS, count, p=self._shares)
        within = rng.standard_normal((count, _DIRECTIONS), dtype=np.float32) @ self._basis
        noise = rng.standard_normal((count, DIM), dtype=np.float32)
        return self._mean + self._centres[clusters] + 0.7 * within + 0.02 * noise


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
