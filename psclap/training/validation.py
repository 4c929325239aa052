"""Validation inside a training: retrieval in both directions, and zero-shot classification, on the val split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from psclap import distributed
from psclap.config import TrainConfig
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.classification import ClassificationSet, carried_attributes, classify
from psclap.evaluation.retrieval import RetrievalSet
from psclap.metrics import retrieval_metrics, unweighted_average_recall
from psclap.ranking import ranks_both_ways
from psclap.shards.index import ShardIndex
from psclap.training.task import ContrastiveTask


class RetrievalValidation:
    """The validation sets of a variant: its captions, and every attribute of which the split has two tags or more."""

    def __init__(self, index: ShardIndex, config: TrainConfig):
        """Raises PsclapError where val has none of the set's captions, or none of what the best is chosen by."""
        attributes = carried_attributes(index, "val")
        if config.best_metric == "val/UAR" and not attributes:
            raise PsclapError(
                "train.*.best_metric 'val/UAR': the clips of val carry no two tags of an attribute; choose val/MRR"
            )
        self._index = index
        self._retrieval = RetrievalSet.of(index, "val", config.validation_set)
        self._classification = [ClassificationSet.of(index, "val", name) for name in attributes]
        labelled = [labels.rows for labels in self._classification]
        self._rows = np.unique(np.concatenate([self._retrieval.rows, *labelled]))

    def metrics(self, task: ContrastiveTask, alive: Callable[[], None]) -> dict[str, float]:
        """`val/...`; every rank embeds its share of the clips, all know the result. `alive` is called for each clip."""
        embedder = Embedder.of(task.model, task.processor)
        speech = _embed_together(embedder, self._index, self._rows, alive)
        to_text, to_speech = ranks_both_ways(
            speech[self._numbers(self._retrieval.rows)],
            embedder.embed_text(self._retrieval.captions),
            self._retrieval.right,
        )
        recalls = {
            labels.attribute: unweighted_average_recall(
                classify(speech[self._numbers(labels.rows)], embedder.embed_tags(labels.candidates), labels).confusion
            )
            for labels in self._classification
        }
        return {
            **{f"val/{name}": value for name, value in retrieval_metrics(to_text).items()},
            **{f"val/text_to_audio/{name}": value for name, value in retrieval_metrics(to_speech).items()},
            **({"val/UAR": float(np.mean([*recalls.values()]))} if recalls else {}),
            **{f"val/UAR/{name}": value for name, value in recalls.items()},
        }

    def _numbers(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of rows of the index among those that are embedded."""
        return np.searchsorted(self._rows, rows)


def _embed_together(embedder: Embedder, index: ShardIndex, rows: np.ndarray, alive: Callable[[], Any]) -> np.ndarray:
    """(N, D) speech embeddings of rows of the index, on every rank."""

    def clips() -> Iterator[np.ndarray]:
        for number in distributed.my_share(len(rows)):
            alive()
            yield index.read_clip(int(rows[number]))

    speech = torch.from_numpy(embedder.embed_audio(clips())).to(embedder.device)
    return distributed.join_shares(distributed.all_gather(speech), len(rows)).cpu().numpy()
