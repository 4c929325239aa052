"""The best and the worst retrievals of a caption set, with the clips to listen to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psclap.evaluation.retrieval import RetrievalSet
from psclap.report.clips import Clip, PlayableClips
from psclap.report.queries import Found, Side, best_and_worst, best_right, find

_TOP = 3
_CLIPS_EACH = 3
_CAPTIONS_EACH = 2
"""A page has at most 3 x (2 x 3 + 2 x 2 x 4) = 66 clips: 4.4 MB of sound where each has 10 s."""


@dataclass(frozen=True)
class Answer:
    """One thing that a query found: a caption, or a clip."""

    score: float
    is_right: bool
    caption: str = ""
    clip: Clip | None = None


@dataclass(frozen=True)
class Example:
    """A query, the rank of the first right answer, the answers of the highest scores, and the right one if it is
    not among these.
    """

    rank: float
    num_candidates: int
    num_right: int
    query: Answer
    top: Sequence[Answer]
    missed: Answer | None


@dataclass(frozen=True)
class Examples:
    """The best and the worst queries of one direction."""

    best: Sequence[Example]
    worst: Sequence[Example]


def of_clips(test_set: RetrievalSet, side: Side, clips: PlayableClips) -> Examples:
    """Clips with the captions that they find."""

    def example(query: int) -> Example:
        clip = Answer(0.0, True, clip=clips.of(test_set.rows[query]))
        return _example(side, query, clip, [_caption(test_set, found) for found in _shown(side, query)])

    best, worst = best_and_worst(side, _CLIPS_EACH)
    return Examples([example(query) for query in best], [example(query) for query in worst])


def of_captions(test_set: RetrievalSet, side: Side, clips: PlayableClips) -> Examples:
    """Captions with the clips that they find."""

    def example(query: int) -> Example:
        caption = Answer(0.0, True, caption=test_set.captions[query])
        return _example(side, query, caption, [_clip(test_set, found, clips) for found in _shown(side, query)])

    best, worst = best_and_worst(side, _CAPTIONS_EACH)
    return Examples([example(query) for query in best], [example(query) for query in worst])


def _shown(side: Side, query: int) -> list[Found]:
    """The best answers, and behind them the best right one where they hold none."""
    top = find(side, query, _TOP)
    return top if any(found.is_right for found in top) else [*top, best_right(side, query)]


def _example(side: Side, query: int, asked: Answer, shown: Sequence[Answer]) -> Example:
    num_top = min(_TOP, len(side.candidates))
    return Example(
        rank=float(side.ranks.expected[query]),
        num_candidates=len(side.candidates),
        num_right=int(side.right.counts[query]),
        query=asked,
        top=shown[:num_top],
        missed=shown[num_top] if len(shown) > num_top else None,
    )


def _caption(test_set: RetrievalSet, found: Found) -> Answer:
    return Answer(found.score, found.is_right, caption=test_set.captions[found.number])


def _clip(test_set: RetrievalSet, found: Found, clips: PlayableClips) -> Answer:
    return Answer(found.score, found.is_right, clip=clips.of(test_set.rows[found.number]))
