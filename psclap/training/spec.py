"""What a training is of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from psclap.loop_config import CheckpointConfig, LoadingConfig, LoopConfig
from psclap.shards.cache import FileCache, cache_folder
from psclap.shards.index import ShardIndex
from psclap.training.recipe import Recipe

_MAY_CHANGE = ("compute", "log_every", "max_skipped_steps", "patience")


@dataclass(frozen=True)
class Training:
    """What a training is of: the shards (a folder or URL), the objective and its configuration, the seed.

    How its batches are loaded, which checkpoints are kept and after how long without progress a worker ends (None:
    never) do not change what it is.
    """

    shards: Path | str
    recipe: Recipe
    seed: int
    loading: LoadingConfig = field(default_factory=LoadingConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    hang_timeout_s: float | None = None

    @property
    def train(self) -> LoopConfig:
        """How the loop runs."""
        return self.recipe.train

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
        return _hash({"train": train, **self.recipe.values(), "seed": self.seed})


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=dict).encode()).hexdigest()
