"""Retrieval over de-duplicated captions, in both directions.

A clip may have several right captions, and a caption several right clips.
Axes: N clips, M distinct captions, D embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow.compute as pc

from psclap import metrics
from psclap.errors import PsclapError
from psclap.pairs import Pairs
from psclap.schema import CAPTION_SETS, CaptionSet, Split
from psclap.shards.index import ShardIndex

Direction = Literal["audio_to_text", "text_to_audio"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """The clips of a test set, its distinct captions, and which caption is right for which clip."""

    rows: np.ndarray  # (N,) of the index
    captions: Sequence[str]  # M
    right: Pairs  # of clips and captions

    @classmethod
    def of(cls, index: ShardIndex, split: Split, caption_set: CaptionSet) -> RetrievalSet:
        """The test set of one split and caption set. Raises PsclapError where the split has no such caption."""
        view = index.view(split, caption_set)
        of_clip = index.captions(view)
        texts, clips = of_clip.flatten().to_pylist(), of_clip.value_parent_indices().to_numpy()
        captions = sorted(set(texts))
        number_of = {text: number for number, text in enumerate(captions)}
        numbers = np.array([number_of[text] for text in texts])
        return cls(view.rows, captions, Pairs.of(clips, numbers, len(view.rows), len(captions)))

    def by_direction(self) -> dict[Direction, Pairs]:
        """What is right for a query, of each direction."""
        return dict(zip(DIRECTIONS, (self.right, self.right.transposed), strict=True))

    def chance(self) -> dict[str, Any]:
        """The recalls of a random order, in both directions."""
        return {
            direction: {
                f"R@{k}": metrics.chance_recall(right.counts, right.num_candidates, k) for k in metrics.RECALL_CUTOFFS
            }
            for direction, right in self.by_direction().items()
        }


def check_caption_set(name: str) -> CaptionSet:
    """Returns the name. Raises PsclapError for one that is no caption set."""
    for known in CAPTION_SETS:
        if name == known:
            return known
    raise PsclapError(f"no caption set {name!r}; there are {', '.join(CAPTION_SETS)}")


def carried_caption_sets(index: ShardIndex, split: Split) -> tuple[CaptionSet, ...]:
    """The caption sets of which a split has a caption."""
    captions = index.take(index.rows_of(split), ["captions"])["captions"]
    found = pc.unique(pc.struct_field(pc.list_flatten(captions), "set")).to_pylist()
    return tuple(name for name in CAPTION_SETS if name in found)
