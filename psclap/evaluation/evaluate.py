"""One model on every test set: retrieval and classification, from one pass over the clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from psclap.config import EvaluateConfig
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.classification import ClassificationSet, classification
from psclap.evaluation.retrieval import RetrievalSet, chance, retrieval
from psclap.shards.index import ShardIndex


class TestSets:
    """The retrieval and classification sets that a configuration names, and the clips they are made of."""

    __test__ = False  # not a class of pytest's

    def __init__(self, index: ShardIndex, config: EvaluateConfig):
        self.index = index
        self.retrieval = {name: RetrievalSet.of(index, config.split, name) for name in config.caption_sets}
        self.classification: Sequence[ClassificationSet] = [
            ClassificationSet.of(index, config.split, attribute) for attribute in config.attributes
        ]
        rows = [s.rows for s in self.retrieval.values()] + [s.rows for s in self.classification]
        self.rows = np.unique(np.concatenate(rows))

    def evaluate(self, embedder: Embedder) -> dict[str, Any]:
        """`{"retrieval": {caption set: ...}, "classification": {attribute: ...}}`."""
        if embedder.sample_rate_hz != self.index.sample_rate_hz:
            raise PsclapError(
                f"the model hears {embedder.sample_rate_hz} Hz and the shards hold {self.index.sample_rate_hz} Hz; "
                "set shard.sample_rate_hz to the model's rate"
            )
        return self.score(embedder.embed_audio(self.index.read_clip(int(row)) for row in self.rows), embedder)

    def score(self, speech: np.ndarray, embedder: Embedder) -> dict[str, Any]:
        """As `evaluate`, from the embeddings of the clips `rows`."""

        def speech_of(rows: np.ndarray) -> np.ndarray:
            return speech[np.searchsorted(self.rows, rows)]

        return {
            "retrieval": {
                name: retrieval(speech_of(test_set.rows), embedder.embed_text(test_set.captions), test_set.is_right)
                for name, test_set in self.retrieval.items()
            },
            "classification": {
                test_set.attribute: {
                    "candidates": test_set.candidates,
                    **classification(
                        speech_of(test_set.rows), embedder.embed_tags(test_set.candidates), test_set.actual
                    ),
                }
                for test_set in self.classification
            },
        }

    def chance(self) -> dict[str, Any]:
        """What guessing scores, in the same form."""
        return {
            "retrieval": {name: chance(test_set.is_right) for name, test_set in self.retrieval.items()},
            "classification": {s.attribute: {"UAR": 1 / len(s.candidates)} for s in self.classification},
        }
