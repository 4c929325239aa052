"""Every measure as a histogram: shares of clips in bins, of which the distances are then the same for all.

Numbers fall into bins that each hold a tenth of both data sets together; words are bins themselves. Bins that were
cut by one of the two alone would fit that one better, also where both are alike, and chance would be judged too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

_TENTHS = np.arange(0.1, 0.95, 0.1)


@dataclass(frozen=True)
class Measure:
    """One thing that is measured of every clip: `codes` (N,) are the bins of the reference's clips and then the new."""

    name: str
    kind: str  # score, tag, label, duration or embedding
    bins: Sequence[str]
    codes: np.ndarray
    values: np.ndarray | None = None  # (N,) where the bins are of numbers


def of_numbers(name: str, kind: str, values: np.ndarray) -> Measure:
    """Bins between the tenths of the values (N,); NaN has a bin of its own.

    Where many clips share a value, that value is a bin.
    """
    edges = np.unique(np.quantile(values[~np.isnan(values)], _TENTHS)) if not np.isnan(values).all() else np.zeros(1)
    codes = np.searchsorted(edges, values, side="right")
    bins = _intervals(edges)
    if len(edges) < len(_TENTHS):
        codes = codes + np.searchsorted(edges, values, side="left")
        last = bins[-1]
        bins = [text for low, edge in zip(bins, edges, strict=False) for text in (low, f"{edge:.3g}")] + [last]
    codes[np.isnan(values)] = len(bins)
    return _used(Measure(name, kind, [*bins, "missing"], codes, values))


def _intervals(edges: np.ndarray) -> list[str]:
    texts = [f"{edge:.3g}" for edge in edges]
    between = [f"{low} to {high}" for low, high in pairwise(texts)]
    return [f"below {texts[0]}", *between, f"above {texts[-1]}"]


def _used(measure: Measure) -> Measure:
    """Without the bins that no clip is in."""
    used, codes = np.unique(measure.codes, return_inverse=True)
    return replace(measure, bins=[measure.bins[number] for number in used], codes=codes)


def of_words(name: str, kind: str, words: Sequence[str | None]) -> Measure:
    """A bin for each word; None is "none"."""
    bins, codes = np.unique(["none" if word is None else word for word in words], return_inverse=True)
    return Measure(name, kind, bins.tolist(), codes)


def one_hot(measures: Sequence[Measure]) -> np.ndarray:
    """(N, bins of all measures) float32: 1 in the bin of each measure that a clip is in."""
    return np.concatenate([np.eye(len(m.bins), dtype=np.float32)[m.codes] for m in measures], axis=1)


def moved(reference: np.ndarray, new: np.ndarray) -> np.ndarray:
    """(...,) the total variation distance of shares (..., B): half the sum of their absolute differences.

    It is the share of the new clips that would have to be in another bin for both to be alike.

    >>> moved(np.array([0.5, 0.5]), np.array([0.8, 0.2])).round(3)
    np.float64(0.3)
    """
    return np.abs(new - reference).sum(-1) / 2


def stability_index(reference: np.ndarray, new: np.ndarray, clips: tuple[int, int]) -> np.ndarray:
    """(...,) the population stability index of shares (..., B): the sum of (new - reference) ln(new / reference).

    Siddiqi, Credit Risk Scorecards (2006), takes 0.1 for a small and 0.25 for a large shift, whatever the number of
    clips; equal distributions give about (B - 1)(1/n + 1/m) (Yurdakul, Statistical Properties of Population Stability
    Index, 2018). Half a clip is added to every bin, so that an empty one does not make it infinite.

    >>> stability_index(np.array([0.5, 0.5]), np.array([0.8, 0.2]), (1000, 1000)).round(3)
    np.float64(0.415)
    """
    smoothed = [
        (shares * number + 0.5) / (number + 0.5 * shares.shape[-1])
        for shares, number in zip((reference, new), clips, strict=True)
    ]
    return ((smoothed[1] - smoothed[0]) * np.log(smoothed[1] / smoothed[0])).sum(-1)
