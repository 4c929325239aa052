"""What the loop asks of an objective: a recipe makes its batches, its task and its validation, and the loop no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from transformers import PreTrainedModel

from psclap.loader import Collator, Stream
from psclap.loop_config import LoopConfig
from psclap.shards.index import ShardIndex


class Losses(NamedTuple):
    """The losses of a global batch, equal on every rank, and nothing that waited for the device."""

    total: torch.Tensor
    """A scalar. Its gradient on one rank is exact in the mean over ranks, see `psclap.distributed`."""
    report: dict[str, torch.Tensor]
    """The parts of the total, detached scalars."""
    is_finite: torch.Tensor
    """(B,) bool: whether what the model makes of a clip is; in the global batch's order."""


class Task(Protocol):
    """A model under its losses: a torch module that maps a rank's share of a global batch to `Losses`.

    A batch has `to(device)`, `pin_memory()` and `counts`, (2 + K,) int64: its clips, their samples, and a count for
    each of `count_names`.
    """

    model: PreTrainedModel
    """What is trained; its parameters are all that a step changes."""
    count_names: tuple[str, ...]

    def collator(self) -> Collator:
        """Makes this rank's batches; it is sent to the loader processes."""
        ...

    def after_step(self) -> None:
        """What the weights are held to after each step, without waiting for the device."""
        ...

    def values(self) -> dict[str, torch.Tensor]:
        """Scalars to log after a step, on the device."""
        ...

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor]) -> None:
        """Writes the model with these weights as a transformers folder; equal weights give equal bytes."""
        ...


class Validation(Protocol):
    """What is measured on val while training."""

    def metrics(self, task: Any, alive: Callable[[], None]) -> dict[str, float]:
        """`val/...` of the task's model; every rank takes part, all know the result. `alive` is called often."""
        ...


class Recipe(Protocol):
    """An objective and its configuration, as plain values: it is sent to the workers."""

    @property
    def train(self) -> LoopConfig:
        """How the loop runs."""
        ...

    @property
    def max_crop_s(self) -> float:
        """How much of a clip an example holds at most."""
        ...

    def values(self) -> Mapping[str, Any]:
        """Besides `train`, all of the configuration that a result depends on, by section."""
        ...

    def reads(self) -> Sequence[str]:
        """What each worker reads besides the shards: folders, or models by name (`psclap.models.fetch`)."""
        ...

    def stream(self, index: ShardIndex, seed: int) -> Stream:
        """The global batches. Raises PsclapError where the data gives none."""
        ...

    def task(self, index: ShardIndex, stream: Stream, seed: int) -> Any:
        """The Task as it is before the first step. Raises PsclapError for weights that cannot be had or frozen."""
        ...

    def validation(self, index: ShardIndex) -> Validation:
        """Raises PsclapError where val lacks what the best checkpoint is chosen by."""
        ...

    def check(self, index: ShardIndex, stream: Stream) -> None:
        """Raises PsclapError, before any worker starts, for data that the objective cannot be trained on."""
        ...
