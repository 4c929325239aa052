"""What a training is of, and the model that it starts from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from psclap.config import CheckpointConfig, LoadingConfig, ModelConfig, TrainConfig
from psclap.models.build import build_model
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.processor import ParaSpeechCLAPProcessor
from psclap.shards.cache import FileCache, cache_folder
from psclap.shards.index import ShardIndex
from psclap.tags import VOCABULARY, training_prompts

_MAY_CHANGE = ("compute", "log_every", "max_skipped_steps", "patience")


@dataclass(frozen=True)
class Training:
    """What a training is of: the shards (a folder or URL), the model and the variant's configuration, the seed.

    How its batches are loaded, which checkpoints are kept and after how long without progress a worker ends (None:
    never) do not change what it is.
    """

    shards: Path | str
    model: ModelConfig
    train: TrainConfig
    seed: int
    loading: LoadingConfig = field(default_factory=LoadingConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    hang_timeout_s: float | None = None

    def open_index(self) -> ShardIndex:
        """The index of the shards. Raises PsclapError where there is none."""
        return ShardIndex(self.shards, FileCache(cache_folder(), round(self.loading.shard_cache_gb * 1e9)))

    def identity(self, index: ShardIndex) -> dict[str, str]:
        """Hashes of what must stay the same for a checkpoint to be continued.

        What a user may have to change because of how the training went is left out.
        """
        return {"data": index.sha256, "configuration": self.configuration(without=_MAY_CHANGE)}

    def configuration(self, without: Collection[str] = ()) -> str:
        """The hash of all that the result depends on but the data, without some keys of `train`."""
        train = {name: value for name, value in asdict(self.train).items() if name not in without}
        return _hash({"train": train, "model": asdict(self.model), "seed": self.seed})


def build_training_model(training: Training, index: ShardIndex) -> tuple[ParaSpeechCLAPModel, ParaSpeechCLAPProcessor]:
    """The model and processor as they are before the first step."""
    bias = training.train.initial_logit_bias
    if training.model.text.pretrained is not None:  # it brings its tokenizer: no text is needed
        return build_model(training.model, [], index.sample_rate_hz, training.seed, bias)
    in_train = index.take(index.rows_of("train"), ["captions"])
    captions = (caption["text"] for row in in_train["captions"].to_pylist() for caption in row)
    prompts = (prompt for tag in VOCABULARY for prompt in training_prompts(tag))
    return build_model(training.model, [*captions, *prompts], index.sample_rate_hz, training.seed, bias)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=dict).encode()).hexdigest()
