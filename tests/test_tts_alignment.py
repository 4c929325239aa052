"""Boundary errors of alignments that are off by a known amount."""

import numpy as np
import pytest

from psclap.errors import PsclapError
from psclap.tts.evaluation.alignment import Boundaries, Timeline, alignment_errors, matched
from psclap.tts.mel import LJSPEECH, MelConfig

HOP_S = 256 / 16000


def timeline(symbols: str, *edges_s: float) -> Timeline:
    return Timeline(tuple(symbols), np.array(edges_s[:-1]), np.array(edges_s[1:]))


KNOWN = timeline("abcd", 0, 0.1, 0.15, 0.4, 0.5)


def test_a_delay_is_the_error_of_every_boundary() -> None:
    late = Timeline(KNOWN.symbols, KNOWN.starts_s + 0.03, KNOWN.ends_s + 0.03)
    found = alignment_errors({"clip": (late, KNOWN)})["predicted"]
    assert (found["mean_ms"], found["median_ms"]) == pytest.approx((30, 30))
    assert (found["within_20_ms"], found["within_50_ms"]) == (0, 1)
    assert found["duration_ms"] == pytest.approx(0, abs=1e-9)
    assert (found["matched"], found["unmatched_predicted"], found["unmatched_known"]) == (4, 0, 0)


def test_errors_are_of_all_phones_of_all_clips() -> None:
    """Not a mean of the clips' means: a long clip has more phones."""
    off = Timeline(KNOWN.symbols, KNOWN.starts_s + 0.06, KNOWN.ends_s)
    short = timeline("x", 0, 0.2)
    found = alignment_errors({"1": (off, KNOWN), "2": (short, short)})["predicted"]
    assert found["mean_ms"] == pytest.approx(4 * 60 / 5)
    assert found["within_50_ms"] == pytest.approx(1 / 5)
    assert found["duration_ms"] == pytest.approx(4 * 60 / 5)
    low, high = found["intervals"]["mean_ms"]
    assert (low, high) == pytest.approx((0, 60))


def test_the_even_alignment_is_of_the_sounds_alone() -> None:
    predicted = Timeline(("a", " ", "b", "."), np.array([0, 0.3, 0.4, 0.8]), np.array([0.3, 0.4, 0.8, 1.0]))
    known = timeline("ab", 0, 0.5, 0.8)
    found = alignment_errors({"clip": (predicted, known)})
    assert found["predicted"]["mean_ms"] == pytest.approx(50)  # 0 and 100
    assert found["even"]["mean_ms"] == pytest.approx(50)  # a from 0, b from 0.4 of 0.8
    assert found["even"]["duration_ms"] == pytest.approx(100)


def test_stress_tones_and_pauses_are_not_compared() -> None:
    ours = Timeline(("ˈæ", " ", "n", "d", "iː", "i214", ","), np.arange(7.0), np.arange(1.0, 8.0))
    theirs = Timeline(("æ", "n", "d", "i", "_:", "i"), np.array([0, 2, 3, 4, 4.5, 5]), np.array([2, 3, 4, 4.5, 5, 6.0]))
    found = Boundaries.of(ours, theirs)
    assert found.errors_ms.tolist() == [0] * 5
    assert (found.unmatched_predicted, found.unmatched_known) == (0, 0)


def test_what_does_not_match_is_counted() -> None:
    ours = timeline("abxcd", 0, 0.1, 0.15, 0.2, 0.4, 0.5)
    found = Boundaries.of(ours, KNOWN)
    assert found.errors_ms == pytest.approx([0, 0, 50, 0])
    assert (found.unmatched_predicted, found.unmatched_known) == (1, 0)
    assert (Boundaries.of(KNOWN, ours).unmatched_predicted, Boundaries.of(KNOWN, ours).unmatched_known) == (0, 1)


def test_matching_keeps_the_order() -> None:
    ours, theirs = matched(tuple("abcabc"), tuple("cab"))
    assert ours.tolist() == sorted(ours.tolist())
    assert theirs.tolist() == sorted(theirs.tolist())
    assert ["abcabc"[place] for place in ours] == ["cab"[place] for place in theirs]


@pytest.mark.parametrize(("mel", "edges_s"), [(MelConfig(), [0, 1.5, 4.5]), (LJSPEECH, [0, 2, 5])])
def test_frames_lie_around_their_middles(mel: MelConfig, edges_s: list[float]) -> None:
    found = Timeline.of_frames(["a", "b"], np.array([2, 3]), mel)
    hop_s = mel.hop_length / mel.sample_rate_hz
    assert [*found.starts_s / hop_s, found.ends_s[-1] / hop_s] == pytest.approx(edges_s)


def test_symbols_without_a_frame_take_no_time() -> None:
    found = Timeline.of_frames(["a", "b", "c"], np.array([0, 0, 3]), MelConfig())
    assert found.starts_s.tolist() == [0, 0, 0]
    assert found.ends_s.tolist() == pytest.approx([0, 0, 2.5 * HOP_S])


def test_nothing_in_common_is_an_error() -> None:
    for ours in (timeline("xyz", 0, 1, 2, 3), Timeline((), np.zeros(0), np.zeros(0)), timeline(" ", 0, 1)):
        with pytest.raises(PsclapError, match="no phone of 1 clips is the same"):
            alignment_errors({"clip": (ours, KNOWN)})
    with pytest.raises(PsclapError, match="no phone of 0 clips"):
        alignment_errors({})
