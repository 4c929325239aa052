"""From the epoch plan to this rank's batches; the position can be saved, and restored without replay.

The training process turns the plan into jobs: where this rank's clips of a batch lie, a few numbers each. A thread
or processes turn jobs into batches; they hold no index, so that their number costs no memory.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from psclap import audio, distributed, storage
from psclap.errors import AudioError, PsclapError
from psclap.loop_config import LoadingConfig, SamplingConfig
from psclap.sampling import EpochPlan, Examples
from psclap.schema import CaptionSet
from psclap.shards.index import ShardIndex, View
from psclap.shards.store import Place, ShardStore

_EXAMPLE, _STEP = 0, 1  # what a random generator is for; part of its seed
_PREFETCH = 2  # batches ahead, of the thread or of each process


class Collator(Protocol):
    """What the loader needs to know of an objective. It is sent to the loader processes, and is light."""

    def example(self, row: dict[str, Any], clip: audio.Wave, rng: np.random.Generator) -> Any:
        """One training example of a clip's metadata and its crop.

        `row["captions"]` are the texts of the example's caption set, if it is of one.
        """
        ...

    def collate(self, examples: Sequence[Any], rng: np.random.Generator) -> Any:
        """A rank's batch of its examples; `rng` is in the same state on every rank."""
        ...


@dataclass(frozen=True)
class Position:
    """A place in the stream of global batches: the next batch is number `step` of `epoch`."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True)
class Stream:
    """The global batches of a training: the same on every rank, and however many there are."""

    index: ShardIndex
    views: Sequence[View]
    examples: Examples
    batch_size: int
    seed: int
    options: SamplingConfig

    @cached_property
    def rows(self) -> np.ndarray:
        """The row of the index that each example is."""
        return np.concatenate([view.rows for view in self.views])

    def plan(self, epoch: int) -> EpochPlan:
        """The global batches of an epoch; errors as `EpochPlan`."""
        return EpochPlan(self.examples, self.batch_size, self.seed, epoch, self.options)


@dataclass(frozen=True)
class _Job:
    """One rank's share of one global batch."""

    position: Position
    after: Position
    first_place: int  # in the epoch, of the share's first example
    places: tuple[Place, ...]
    caption_sets: tuple[CaptionSet | None, ...]


class Loader:
    """This rank's share of every global batch from a position on, epoch after epoch.

    The crop, the caption and everything else drawn for an example depend on (seed, epoch, place in the epoch)
    alone: the same whoever loads it, and however many ranks and loader processes there are.
    """

    def __init__(
        self,
        stream: Stream,
        collator: Collator,
        *,
        max_crop_s: float,
        loading: LoadingConfig,
        position: Position = Position(),
        num_batches: int | None = None,
        pin_memory: bool = False,
    ):
        """`num_batches` is where it ends, None: nowhere; no plan is made of an epoch after it. `pin_memory` puts
        batches where a GPU copies them from without waiting.

        Raises PsclapError for what would hang, starve or break later: a batch that the ranks cannot share equally,
        a cache that the shards do not fit into, too little shared memory.
        """
        ranks = distributed.world_size()
        check_share(stream, ranks)
        self._rank, self._ranks = distributed.rank(), ranks
        self._stream, self._loading, self._position, self._pin_memory = stream, loading, position, pin_memory
        self._num_batches = num_batches
        max_crop = round(max_crop_s * stream.index.sample_rate_hz)
        check_cache(stream)
        if storage.is_remote(stream.index.location):
            stream.index.store.cache.check_disk()
        if loading.processes:
            _check_shared_memory(stream, loading, max_crop)
        self._batches = _Batches(stream.index.store, collator, stream.seed, max_crop)
        self._source_of_example = np.repeat(np.arange(len(stream.views)), stream.examples.source_sizes)

    def __iter__(self) -> Iterator[tuple[Position, Any]]:
        """Yields (the position after this batch, this rank's batch)."""
        return self._by_thread() if self._loading.processes == 0 else self._by_processes()

    def _by_thread(self) -> Iterator[tuple[Position, Any]]:
        # Reading and decoding run in libraries that let Python's other threads go on.
        with ThreadPoolExecutor(1, thread_name_prefix="psclap-loader") as executor:
            ahead: deque[Future[tuple[Position, Any]]] = deque()
            try:
                for job in self._jobs():
                    ahead.append(executor.submit(self._batches.__getitem__, job))
                    if len(ahead) > _PREFETCH:
                        yield self._result(ahead.popleft())
                while ahead:
                    yield self._result(ahead.popleft())
            finally:
                for future in ahead:
                    future.cancel()

    def _result(self, future: Future[tuple[Position, Any]]) -> tuple[Position, Any]:
        position, batch = future.result()
        return position, batch.pin_memory() if self._pin_memory else batch

    def _by_processes(self) -> Iterator[tuple[Position, Any]]:
        context = multiprocessing.get_context(self._loading.start_method)
        if self._loading.start_method == "forkserver":
            context.set_forkserver_preload([__name__])
        batches = DataLoader(
            _ErrorsAsValues(self._batches),
            batch_size=None,
            sampler=_Jobs(self._jobs),
            num_workers=self._loading.processes,
            collate_fn=_as_it_is,
            prefetch_factor=_PREFETCH,
            multiprocessing_context=context,
            pin_memory=self._pin_memory,
            # A fork server has the environment of its start, which may be before credentials were set.
            worker_init_fn=partial(_set_environment, dict(os.environ)),
        )
        for position, batch in batches:
            if isinstance(batch, PsclapError):
                raise batch
            yield position, batch

    def _jobs(self) -> Iterator[_Job]:
        return itertools.islice(self._endless_jobs(), self._num_batches)

    def _endless_jobs(self) -> Iterator[_Job]:
        position = self._position
        while True:
            plan = self._stream.plan(position.epoch)
            for step in range(position.step, len(plan)):
                yield self._job(plan, Position(position.epoch, step))
            position = Position(position.epoch + 1, 0)

    def _job(self, plan: EpochPlan, position: Position) -> _Job:
        of_all = plan.examples(position.step)
        per_rank = len(of_all) // self._ranks
        first = self._rank * per_rank
        numbers = of_all[first : first + per_rank]
        is_last = position.step + 1 == len(plan)
        return _Job(
            position,
            Position(position.epoch + 1, 0) if is_last else Position(position.epoch, position.step + 1),
            plan.first_place(position.step) + first,
            tuple(self._stream.index.place(int(row)) for row in self._stream.rows[numbers]),
            tuple(self._stream.views[source].caption_set for source in self._source_of_example[numbers]),
        )


class _Batches(Dataset[Any]):
    """Maps a job to (the position after it, its batch)."""

    def __init__(self, store: ShardStore, collator: Collator, seed: int, max_crop: int):
        self._store, self._collator, self._seed, self._max_crop = store, collator, seed, max_crop

    def __getitem__(self, job: _Job) -> tuple[Position, Any]:
        examples = [
            self._example(place, caption_set, self._rng(_EXAMPLE, job.position.epoch, job.first_place + number))
            for number, (place, caption_set) in enumerate(zip(job.places, job.caption_sets, strict=True))
        ]
        rng = self._rng(_STEP, job.position.epoch, job.position.step)
        return job.after, self._collator.collate(examples, rng)

    def _example(self, place: Place, caption_set: CaptionSet | None, rng: np.random.Generator) -> Any:
        row, flac = self._store.clip(place)
        row["captions"] = [caption["text"] for caption in row["captions"] if caption["set"] == caption_set]
        start = audio.crop_start(place.num_samples, self._max_crop, rng)
        try:
            clip = audio.decode_flac(flac, start, min(self._max_crop, place.num_samples))
        except AudioError as error:
            raise PsclapError(f"clip {row['key']!r} of {self._store.location} is damaged: {error}") from error
        return self._collator.example(row, clip, rng)

    def _rng(self, purpose: int, epoch: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, purpose, epoch, number])


class _ErrorsAsValues(Dataset[Any]):
    """Hands an error that a user can mend on as it is; torch would put a process's traceback into its sentence."""

    def __init__(self, batches: _Batches):
        self._batches = batches

    def __getitem__(self, job: _Job) -> tuple[Position, Any]:
        try:
            return self._batches[job]
        except PsclapError as error:
            return job.after, error


class _Jobs(Sampler[_Job]):
    """The jobs as torch's DataLoader takes them: as the indices of a data set."""

    def __init__(self, jobs: Any):
        self._jobs = jobs

    def __iter__(self) -> Iterator[_Job]:
        return self._jobs()


def _set_environment(environment: dict[str, str], worker: int) -> None:
    os.environ.update(environment)


def _as_it_is(batch: Any) -> Any:
    return batch


def check_share(stream: Stream, ranks: int) -> None:
    """Raises PsclapError for a batch that the ranks cannot share equally: one of them would wait for ever."""
    multiple, name = stream.batch_size, "global_batch_size"
    if stream.options.max_batch_s is not None:
        multiple, name = stream.options.batch_multiple, "sampling.batch_multiple"
    if multiple % ranks:
        raise PsclapError(
            f"train.*.{name} {multiple} must be divisible by the {ranks} workers; "
            "change it, or the number of workers (resources)"
        )


def check_cache(stream: Stream) -> None:
    """Raises PsclapError where a remote's shards do not fit into the cache that are read at the same time.

    Blocks of shards come one after the other in a plan of one source (or concatenated ones), neither balanced nor
    bucketed; any other plan goes back and forth between all shards.
    """
    store, options = stream.index.store, stream.options
    if not storage.is_remote(store.location):
        return
    mixed = len(stream.views) > 1 and options.mixing == "interleave"
    in_blocks = not (mixed or options.class_balance != "none" or options.bucket_batches)
    by_size = sorted((num_bytes for num_bytes, _ in store.shards.values()), reverse=True)
    block = options.shuffle_block_shards if in_blocks else None
    # The block before is still read from, the one after already.
    needed = sum(by_size if block is None else by_size[: 3 * block]) + stream.index.summary["index_bytes"]
    if needed > store.cache.max_bytes:
        way_out = "lower it" if block else "set it, with mixing: concatenate, class_balance: none, bucket_batches: null"
        raise PsclapError(
            f"resources.loading.shard_cache_gb {store.cache.max_bytes / 1e9:.3g}: {needed / 1e9:.3g} GB of shards are "
            "read at the same time, and each would be fetched again and again; raise it, or as to "
            f"train.*.sampling.shuffle_block_shards, {way_out}"
        )


def _check_shared_memory(stream: Stream, loading: LoadingConfig, max_crop: int) -> None:
    """Loader processes hand over batches in shared memory; containers often have 64 MB of it, and a bus error."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world_size()))
    clips = stream.batch_size // distributed.world_size() * ranks_here * loading.processes * (_PREFETCH + 1)
    needed, free = clips * max_crop * 5, shutil.disk_usage("/dev/shm").free  # a float and a flag of the mask each
    if needed > free:
        raise PsclapError(
            f"resources.loading.processes {loading.processes}: batches on their way take up to {needed / 1e6:.0f} MB "
            f"of shared memory, and /dev/shm has {free / 1e6:.0f} MB free; give the container more (--shm-size), or "
            "lower it"
        )
