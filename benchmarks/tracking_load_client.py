"""A client of benchmarks/tracking_load.py: whole runs of a miniature pipeline, one after the other, in one process."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import urllib3
from mlflow.exceptions import MlflowException

from pipelines.delivery import deliver
from pipelines.registry import register
from pipelines.sender import reported
from pipelines.tracking import TrackingStore
from psclap.config import EvaluateConfig, Params
from psclap.data_config import ShardConfig
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.evaluate import TestSets
from psclap.loop_config import CheckpointConfig
from psclap.shards.index import ShardIndex
from psclap.shards.writer import ShardJob, write_shards
from psclap.strict import flatten
from psclap.training.dual_encoder import DualEncoderRecipe
from psclap.training.journal import Journal, JournalTracker
from psclap.training.loop import train
from psclap.training.spec import Training
from psclap.training.store import CheckpointStore

EXPERIMENT, MODEL = "load", "psclap-load"
STEPS = 4
_ATTEMPTS = 5


@dataclass
class Calls:
    """Every request that was made: (method and what of, seconds, status or error); and the runs begun again."""

    requests: list[tuple[str, float, str]] = field(default_factory=list)
    again: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """A run as its client knows it."""

    number: int
    run_id: str
    version: str | None
    journal: Path
    tested: dict[str, float]


def work(
    numbers: Any,
    results: Any,
    uri: str,
    folder: Path,
    utterances: pa.Table,
    params: Params,
    register_every: int,
) -> None:
    """Takes numbers until there are none, and does a run for each; what they tell goes to a file."""
    log = os.open(folder / f"client-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    store, calls = TrackingStore(uri, None), Calls()
    with timed(calls):
        while (number := numbers.get()) is not None:
            job = partial(one_run, number, store, folder / f"run-{number:04d}", utterances, params)
            results.put(_until_done(partial(job, registers=number % register_every == 0), number, calls))
    results.put(calls)


def _until_done(job: Callable[[], Outcome], number: int, calls: Calls) -> Outcome:
    for _ in range(_ATTEMPTS - 1):
        try:
            return job()
        except (PsclapError, MlflowException) as error:
            calls.again.append(f"run {number}: {error}")
            time.sleep(1)
    return job()


def one_run(
    number: int, store: TrackingStore, folder: Path, utterances: pa.Table, params: Params, registers: bool
) -> Outcome:
    """A run in `folder`, with a version of its model where it `registers`; called again, it goes on from there."""
    shards = folder / "shards"
    write_shards(ShardJob(utterances, Path("/"), _sharding(params), str(shards), str(folder / "receipts")), run=map)
    journal, checkpoints = Journal.start(folder / "journal", EXPERIMENT, f"run-{number}"), folder / "checkpoints"
    saved = CheckpointStore(checkpoints, CheckpointConfig(keep_last=1))
    with reported(journal, store, {"number": str(number)}):
        train(training(shards, params, number), JournalTracker(journal), saved)
    run_id = deliver(store, journal)
    best = saved.best()
    with saved.reading(best) as model:
        tested = _evaluate(shards, model, params)
        store.log_metrics(run_id, best.step, tested)
        tags = {"number": str(number)}
        version = register(store, run_id, model, MODEL, alias=None, tags=tags).version if registers else None
    return Outcome(number, run_id, version, journal.folder, tested)


def training(shards: Path, params: Params, seed: int) -> Training:
    """A few steps of the demo's combined variant."""
    sampling = dataclasses.replace(params.train["combined"].sampling, rare_block_size=4)
    settings = {"global_batch_size": 8, "max_steps": STEPS, "validate_every": STEPS, "log_every": 1}
    config = dataclasses.replace(params.train["combined"], sampling=sampling, **settings)
    return Training(shards, DualEncoderRecipe(params.model, config), seed)


def _sharding(params: Params) -> ShardConfig:
    return dataclasses.replace(params.shard, max_samples_per_shard=40)


def _evaluate(shards: Path, model: Path, params: Params) -> dict[str, float]:
    config = EvaluateConfig("test", params.evaluate.caption_sets, ("gender",))
    results = TestSets(ShardIndex(shards), config, extras=False).evaluate(Embedder(model)).results
    numbers = {k: v for k, v in flatten(results["retrieval"], "/").items() if k.endswith(("R@1", "R@10"))}
    return {f"test/{name}": float(value) for name, value in numbers.items()}


@contextlib.contextmanager
def timed(calls: Calls) -> Iterator[None]:
    """Notes every attempt of every request in the `with` block, those too that urllib3 makes again by itself."""
    pool = urllib3.connectionpool.HTTPConnectionPool
    original = pool._make_request

    def noted(self: Any, conn: Any, method: str, url: str, **rest: Any) -> Any:
        start, outcome = time.perf_counter(), "?"
        try:
            response = original(self, conn, method, url, **rest)
            outcome = str(response.status)
            return response
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            calls.requests.append((f"{method} {_kind(url)}", time.perf_counter() - start, outcome))

    pool._make_request = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        pool._make_request = original  # type: ignore[method-assign]


def _kind(url: str) -> str:
    """`runs/log-batch` of /api/2.0/mlflow/runs/log-batch?...; the artefacts are one kind."""
    path = url.partition("?")[0]
    return "artifacts" if "mlflow-artifacts" in path else "/".join(path.split("/")[4:6])
