"""From the epoch plan to this rank's batches; the position can be saved, and restored without replay."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from psclap import audio, distributed
from psclap.sampling import Balance, EpochPlan
from psclap.shards.index import ShardIndex, View, captions_of

_EXAMPLE, _STEP = 0, 1  # what a random generator is for; part of its seed


class Task(Protocol):
    """What the loader needs to know of an objective."""

    def example(self, row: dict[str, Any], clip: audio.Wave, rng: np.random.Generator) -> Any:
        """One training example of a clip's metadata and its crop; `row["captions"]` are texts."""
        ...

    def collate(self, examples: Sequence[Any], rng: np.random.Generator) -> Any:
        """A rank's batch of its examples; `rng` is in the same state on every rank."""
        ...


@dataclass(frozen=True)
class Position:
    """A place in the stream of global batches: the next batch is number `step` of `epoch`."""

    epoch: int = 0
    step: int = 0


class Loader:
    """This rank's share of every global batch from a position on, epoch after epoch, without end.

    The crop, the caption and everything else drawn for an example depend on (seed, epoch, place in the epoch)
    alone: the same whoever loads it, and however many ranks there are.
    """

    def __init__(
        self,
        index: ShardIndex,
        views: Sequence[View],
        task: Task,
        *,
        global_batch_size: int,
        max_crop_s: float,
        seed: int,
        balance: Balance | None = None,
        position: Position = Position(),
        prefetch: int = 2,
    ):
        """`global_batch_size` is divisible by the number of ranks, and no larger than the data."""
        self._index, self._views, self._task = index, views, task
        self._batch_size, self._seed, self._balance = global_batch_size, seed, balance
        self._max_crop = round(max_crop_s * index.sample_rate_hz)
        self._position, self._prefetch = position, prefetch
        per_rank = global_batch_size // distributed.world_size()
        self._share = slice(distributed.rank() * per_rank, (distributed.rank() + 1) * per_rank)
        self._source_of_example = np.repeat(np.arange(len(views)), [len(view.rows) for view in views])
        self._row_of_example = np.concatenate([view.rows for view in views])

    def plan(self, epoch: int) -> EpochPlan:
        """The global batches of an epoch."""
        sizes = [len(view.rows) for view in self._views]
        return EpochPlan(sizes, self._batch_size, self._seed, epoch, self._balance)

    def __iter__(self) -> Iterator[tuple[Position, Any]]:
        """Yields (the position after this batch, this rank's batch).

        A thread prepares batches ahead: decoding runs in libraries that let Python's other threads go on.
        """
        with ThreadPoolExecutor(1) as executor:
            ahead: deque[Future[tuple[Position, Any]]] = deque()
            try:
                for job in self._jobs():
                    ahead.append(executor.submit(self._load, *job))
                    if len(ahead) > self._prefetch:
                        yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _jobs(self) -> Iterator[tuple[EpochPlan, Position]]:
        position = self._position
        while True:
            plan = self.plan(position.epoch)
            for step in range(position.step, len(plan)):
                yield plan, Position(position.epoch, step)
            position = Position(position.epoch + 1, 0)

    def _load(self, plan: EpochPlan, position: Position) -> tuple[Position, Any]:
        first = position.step * self._batch_size
        numbers = plan.examples(position.step)[self._share]
        places = range(first + self._share.start, first + self._share.stop)
        examples = [
            self._example(number, self._rng(_EXAMPLE, position.epoch, place))
            for number, place in zip(numbers, places, strict=True)
        ]
        batch = self._task.collate(examples, self._rng(_STEP, position.epoch, position.step))
        if position.step + 1 < len(plan):
            return Position(position.epoch, position.step + 1), batch
        return Position(position.epoch + 1, 0), batch

    def _example(self, number: int, rng: np.random.Generator) -> Any:
        row_number = int(self._row_of_example[number])
        row = self._index.row(row_number)
        row["captions"] = captions_of(row, self._views[self._source_of_example[number]].caption_set)
        start = audio.crop_start(row["num_samples"], self._max_crop, rng)
        clip = self._index.read_clip(row_number, start, min(self._max_crop, row["num_samples"]))
        return self._task.example(row, clip, rng)

    def _rng(self, purpose: int, epoch: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, purpose, epoch, number])
