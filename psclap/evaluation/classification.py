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
from psclap.schema import Split
from psclap.shards.index import ShardIndex
from psclap.tags import ATTRIBUTES


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
            raise PsclapError(f"evaluate.attributes: unknown attribute {attribute!r}; known: {', '.join(ATTRIBUTES)}")
        carried = _carried(_labels(index, split), attribute)
        candidates = _candidates(carried, attribute)
        if len(candidates) < 2:
            raise PsclapError(
                f"evaluate.attributes: {attribute!r} cannot be scored on {split}: its clips carry "
                f"{list(candidates)} of {list(ATTRIBUTES[attribute])}, and 2 are needed; leave it out"
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
    candidates = {*ATTRIBUTES[attribute]}
    return {row: tag for row, tags in labels.items() if len(tags & candidates) == 1 for tag in tags & candidates}


def _candidates(carried: Mapping[int, str], attribute: str) -> tuple[str, ...]:
    return tuple(tag for tag in ATTRIBUTES[attribute] if tag in set(carried.values()))


def classification(speech_ND: np.ndarray, tag_KD: np.ndarray, actual_N: np.ndarray) -> dict[str, Any]:
    """UAR, macro F1 and the confusion matrix (rows: actual); embeddings are L2-normalised."""
    confusion = metrics.confusion_matrix(actual_N, metrics.nearest(speech_ND @ tag_KD.T), len(tag_KD))
    return {
        "UAR": metrics.unweighted_average_recall(confusion),
        "macro_F1": metrics.macro_f1(confusion),
        "confusion": confusion.tolist(),
    }
