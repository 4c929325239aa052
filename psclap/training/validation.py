"""Validation inside a training: retrieval in both directions, and zero-shot classification, on the val split."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from psclap import distributed
from psclap.config import EvaluateConfig, TrainConfig
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.classification import carried_attributes
from psclap.evaluation.evaluate import TestSets
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.processor import ParaSpeechCLAPProcessor
from psclap.shards.index import ShardIndex

_BATCH_SIZE = 32


class Validation:
    """The validation sets of a variant: its captions, and every attribute of which the split has two tags or more."""

    def __init__(self, index: ShardIndex, config: TrainConfig):
        """Raises PsclapError where val has none of the set's captions, or none of what the best is chosen by."""
        attributes = carried_attributes(index, "val")
        if config.best_metric == "val/UAR" and not attributes:
            raise PsclapError(
                "train.*.best_metric 'val/UAR': the clips of val carry no two tags of an attribute; choose val/MRR"
            )
        self._index, self._caption_set = index, config.validation_set
        self._sets = TestSets(index, EvaluateConfig("val", (config.validation_set,), attributes, _BATCH_SIZE))

    def metrics(
        self, model: ParaSpeechCLAPModel, processor: ParaSpeechCLAPProcessor, alive: Callable[[], None]
    ) -> dict[str, float]:
        """`val/...`; every rank embeds its share of the clips, all know the result. `alive` is called for each clip."""
        embedder = Embedder.of(model, processor, _BATCH_SIZE)
        speech = _embed_together(embedder, self._index, self._sets.rows, alive)
        result = self._sets.score(speech, embedder)
        retrieval = result["retrieval"][self._caption_set]
        recalls = {name: scores["UAR"] for name, scores in result["classification"].items()}
        return {
            **{f"val/{name}": value for name, value in retrieval["audio_to_text"].items()},
            **{f"val/text_to_audio/{name}": value for name, value in retrieval["text_to_audio"].items()},
            **({"val/UAR": float(np.mean([*recalls.values()]))} if recalls else {}),
            **{f"val/UAR/{name}": value for name, value in recalls.items()},
        }


def _embed_together(embedder: Embedder, index: ShardIndex, rows: np.ndarray, alive: Callable[[], Any]) -> np.ndarray:
    """(N, D) speech embeddings of rows of the index, on every rank."""

    def clips() -> Iterator[np.ndarray]:
        for number in distributed.my_share(len(rows)):
            alive()
            yield index.read_clip(int(rows[number]))

    speech = torch.from_numpy(embedder.embed_audio(clips())).to(embedder.device)
    return distributed.join_shares(distributed.all_gather(speech), len(rows)).cpu().numpy()
