"""Zero-shot classification: the attribute's candidates as prompts, the nearest one wins.

Source: ParaSpeechCLAP, evaluation; the candidates are those of the attribute that the test set carries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from psclap import metrics
from psclap.errors import PsclapError
from psclap.evaluation.outcomes import Labelled, metrics_of
from psclap.ranking import nearest_of
from psclap.schema import Split
from psclap.shards.index import ShardIndex
from psclap.tags import ATTRIBUTES, tag_of


@dataclass(frozen=True)
class ClassificationSet:
    """The clips that are labelled with a candidate of an attribute, and which one.

    A clip's labels are its `classification_tags`; without them, all its tags. It counts where one of them is a
    candidate, and no other.
    """

    attribute: str
    candidates: tuple[str, ...]
    rows: np.ndarray  # (N,) of the index
    actual: np.ndarray  # (N,) numbers of candidates

    @classmethod
    def of(cls, index: ShardIndex, split: Split, attribute: str) -> ClassificationSet:
        """The test set of an attribute. Raises PsclapError where fewer than two candidates occur."""
        if attribute not in ATTRIBUTES:
            raise PsclapError(f"unknown attribute {attribute!r} to classify by; known: {', '.join(ATTRIBUTES)}")
        carried = _carried(_labels(index, split), attribute)
        candidates = _candidates(carried, attribute)
        if len(candidates) < 2:
            raise PsclapError(
                f"the attribute {attribute!r} cannot be scored on {split}: its clips carry {list(candidates)} of "
                f"{list(ATTRIBUTES[attribute])}, and 2 are needed; leave it out (of evaluate.attributes, or of "
                "--attribute)"
            )
        actual = np.array([candidates.index(tag) for tag in carried.values()])
        return cls(attribute, candidates, np.array(list(carried)), actual)


def carried_attributes(index: ShardIndex, split: Split) -> tuple[str, ...]:
    """The attributes that can be scored on a split: its clips carry two candidates or more."""
    labels = _labels(index, split)
    return tuple(name for name in ATTRIBUTES if len(_candidates(_carried(labels, name), name)) >= 2)


def _labels(index: ShardIndex, split: Split) -> dict[int, set[str]]:
    """What each clip of a split is labelled with, by its row."""
    rows = index.rows_of(split)
    table = index.take(rows, ["intrinsic_tags", "situational_tags", "classification_tags"])
    return {
        number: {*(row["classification_tags"] or row["intrinsic_tags"] + row["situational_tags"])}
        for number, row in zip(rows.tolist(), table.to_pylist(), strict=True)
    }


def _carried(labels: Mapping[int, set[str]], attribute: str) -> dict[int, str]:
    """The candidate that each clip carries, where it is one."""
    return {row: tag for row, tags in labels.items() if (tag := tag_of(attribute, tags)) is not None}


def _candidates(carried: Mapping[int, str], attribute: str) -> tuple[str, ...]:
    return tuple(tag for tag in ATTRIBUTES[attribute] if tag in set(carried.values()))


def classify(speech_ND: np.ndarray, tag_KD: np.ndarray, test_set: ClassificationSet) -> Labelled:
    """What the clips of a test set are taken for; embeddings are L2-normalised."""
    return Labelled(test_set.candidates, test_set.actual, nearest_of(speech_ND, tag_KD))


def summarise(outcome: Labelled) -> dict[str, Any]:
    """UAR, macro F1, the confusion matrix (rows: actual), and each candidate's recall with its number of clips."""
    confusion = outcome.confusion
    recalls, clips = metrics.tag_recalls(confusion), confusion.sum(1)
    return {
        **metrics_of(outcome),
        "confusion": confusion.tolist(),
        "tags": {
            tag: {"recall": float(recalls[number]), "clips": int(clips[number])}
            for number, tag in enumerate(outcome.candidates)
        },
    }
