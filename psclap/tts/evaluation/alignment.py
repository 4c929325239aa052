"""How far predicted phoneme boundaries are from known ones, such as espeak-ng's own.

The two name their phonemes independently, so they are matched first: blocks of equal symbols in order, the longest
first (difflib). What finds no partner is counted, not compared.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from psclap.errors import PsclapError
from psclap.evaluation import RESAMPLES
from psclap.tts.evaluation.means import means
from psclap.tts.evaluation.recordings import frame_times_s
from psclap.tts.mel import MelConfig

TOLERANCES_MS = (20, 50)


@dataclass(frozen=True, eq=False)
class Timeline:
    """The symbols of an utterance and when each starts and ends, (N,) seconds; gaps between them are silence."""

    symbols: tuple[str, ...]
    starts_s: np.ndarray
    ends_s: np.ndarray

    @classmethod
    def of_events(cls, events: Sequence[tuple[str, float, float]]) -> Timeline:
        """From (symbol, start, end) each, as psclap/corpora/espeak.py yields them."""
        times_N2 = np.array([event[1:] for event in events], float).reshape(-1, 2)
        return cls(tuple(event[0] for event in events), times_N2[:, 0], times_N2[:, 1])

    @classmethod
    def of_frames(cls, symbols: Sequence[str], frames_N: np.ndarray, mel: MelConfig) -> Timeline:
        """From the number of mel frames of each symbol; a frame reaches half a hop to either side of its middle.

        >>> Timeline.of_frames(["a", "b"], np.array([2, 3]), MelConfig(hop_length=160)).ends_s.round(6).tolist()
        [0.015, 0.045]
        """
        hop_s = mel.hop_length / mel.sample_rate_hz
        edges = np.concatenate([[0.0], np.cumsum(frames_N, dtype=float)])
        edges_s = np.maximum(frame_times_s(mel, edges) - hop_s / 2, 0.0)
        return cls(tuple(symbols), edges_s[:-1], edges_s[1:])

    def phones(self) -> Timeline:
        """The symbols that are sounds, by their names alone: no word boundaries, punctuation, stress marks or tones.

        >>> Timeline.of_events([("h", 0, 0.1), ("ˈaɪ", 0.1, 0.2), ("!", 0.2, 0.3)]).phones().symbols
        ('h', 'aɪ')
        """
        names = [phone_name(symbol) for symbol in self.symbols]
        kept = [place for place, name in enumerate(names) if name]
        return Timeline(tuple(names[place] for place in kept), self.starts_s[kept], self.ends_s[kept])

    def evenly(self) -> Timeline:
        """The same symbols, all of one length, over the same time: what is known without looking at the sound."""
        if not self.symbols:
            return self
        edges_s = np.linspace(self.starts_s[0], self.ends_s[-1], len(self.symbols) + 1)
        return Timeline(self.symbols, edges_s[:-1], edges_s[1:])


def phone_name(symbol: str) -> str:
    """A phone's letters, without stress marks, length marks, tones and pauses; empty where nothing is left.

    >>> [phone_name(symbol) for symbol in ("ˈæ", "iː", "i2", "tʃ", ",", " ", "_:")]
    ['æ', 'i', 'i', 'tʃ', '', '', '']
    """
    return "".join(letter for letter in symbol if unicodedata.category(letter) in ("Ll", "Lu", "Lo", "Mn"))


@dataclass(frozen=True, eq=False)
class Boundaries:
    """The matched phones of one utterance or of several, how far off each one's start is; how many lack a partner."""

    errors_ms: np.ndarray  # (M,) predicted minus known
    durations_ms: np.ndarray  # (M, 2) predicted and known
    unmatched_predicted: int
    unmatched_known: int

    @classmethod
    def of(cls, predicted: Timeline, known: Timeline) -> Boundaries:
        """Of one utterance.

        >>> known = Timeline.of_events([("a", 0, 0.1), ("b", 0.1, 0.2), ("c", 0.2, 0.3)])
        >>> found = Boundaries.of(Timeline.of_events([("a", 0, 0.12), ("c", 0.12, 0.3)]), known)
        >>> found.errors_ms.round().tolist(), found.unmatched_predicted, found.unmatched_known
        ([0.0, -80.0], 0, 1)
        """
        predicted, known = predicted.phones(), known.phones()
        ours, theirs = matched(predicted.symbols, known.symbols)
        durations_s = (predicted.ends_s - predicted.starts_s)[ours], (known.ends_s - known.starts_s)[theirs]
        return cls(
            errors_ms=1000 * (predicted.starts_s[ours] - known.starts_s[theirs]),
            durations_ms=1000 * np.stack(durations_s, axis=1),
            unmatched_predicted=len(predicted.symbols) - len(ours),
            unmatched_known=len(known.symbols) - len(theirs),
        )


def matched(ours: Sequence[str], theirs: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(M,) places in either sequence of the symbols that are matched with each other, both ascending.

    >>> [places.tolist() for places in matched("abcd", "acxd")]
    [[0, 2, 3], [0, 1, 3]]
    """
    blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    pairs = [(block.a + step, block.b + step) for block in blocks for step in range(block.size)]
    ours_M, theirs_M = np.array(pairs, int).reshape(-1, 2).T
    return ours_M, theirs_M


def alignment_errors(
    pairs: Mapping[str, tuple[Timeline, Timeline]], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """The errors of predicted timelines against known ones, by clip, beside those of an `even` alignment.

    Over all matched phones: mean and median absolute error of their starts in ms, the shares within 20 and 50 ms, the
    mean absolute error of their durations in ms, 95 % intervals over the clips, and how many phones were compared and
    how many lack a partner. `even` spreads the predicted phones over the time that they take, all equally long. Raises
    PsclapError where no phone of any clip matches.
    """
    predicted = [Boundaries.of(ours, known) for ours, known in pairs.values()]
    even = [Boundaries.of(ours.phones().evenly(), known) for ours, known in pairs.values()]
    if not any(len(part.errors_ms) for part in predicted):
        raise PsclapError(
            f"no phone of {len(pairs)} clips is the same in the predicted and the known alignment; are both of one "
            "language, in symbols of the International Phonetic Alphabet?"
        )
    return {"predicted": _errors(predicted, resamples, seed), "even": _errors(even, resamples, seed)}


def _errors(parts: Sequence[Boundaries], resamples: int, seed: int) -> dict[str, Any]:
    sizes_ms = np.abs(np.concatenate([part.errors_ms for part in parts]))
    of_durations_ms = np.abs(np.concatenate([part.durations_ms for part in parts]) @ [1.0, -1.0])
    values = {
        "mean_ms": sizes_ms,
        **{f"within_{limit}_ms": (sizes_ms <= limit).astype(float) for limit in TOLERANCES_MS},
        "duration_ms": of_durations_ms,
    }
    clip_M = np.repeat(np.arange(len(parts)), [len(part.errors_ms) for part in parts])
    return {
        **means(values, np.unique(clip_M, return_inverse=True)[1], resamples, seed),
        "median_ms": float(np.median(sizes_ms)),
        "matched": len(sizes_ms),
        "unmatched_predicted": sum(part.unmatched_predicted for part in parts),
        "unmatched_known": sum(part.unmatched_known for part in parts),
    }
