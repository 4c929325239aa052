"""Ray Train around `psclap.training`: the same code on one laptop and on many GPU nodes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psclap
from pipelines.cluster import num_cpus, num_gpus, ray_session
from pipelines.sender import reported
from pipelines.stopping import RaySignals, StopFlag, run_until_stopped
from pipelines.system_metrics import system_metrics
from pipelines.tracking import TrackingStore
from psclap.config import ResourcesConfig
from psclap.errors import PsclapError
from psclap.files import atomic_folder, sync_folder
from psclap.shards.index import ShardIndex
from psclap.storage import join
from psclap.training.checkpoint import Progress, read_progress
from psclap.training.journal import Journal, JournalTracker
from psclap.training.loop import check_training, train
from psclap.training.progress import say
from psclap.training.spec import Training
from psclap.training.store import CheckpointStore
from psclap.training.tracker import NullTracker, Tracker

_JOURNAL_NAME = "journal"
_FINISHED_NAME = "finished"
_FAILURE_NAME = "failure.txt"


@dataclass(frozen=True)
class Run:
    """A training as a run: its name, where it keeps what a restart needs, and where its numbers go."""

    name: str
    training: Training
    resources: ResourcesConfig
    storage: Path
    store: TrackingStore
    experiment: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Trained:
    """The outcome of a run: its journal, and the step and the metrics of the best checkpoint."""

    journal: Journal
    step: int
    metrics: Mapping[str, float]


def train_variant(run: Run, model_folder: Path) -> Trained:
    """Trains and leaves the best checkpoint, by `best_metric`, in `model_folder`.

    What a restart needs is kept under `run.storage`: the same call after a crash or an interrupt goes on from the
    last checkpoint, in the same MLflow run, as long as data, configuration and psclap's code are the same. It is
    removed when the next training of that name begins. Raises PsclapError for bad input, mostly before any worker
    starts.
    """
    index = run.training.open_index()
    identity = _identity(run.training, index)
    with ray_session():
        workers = _num_workers(run.resources)
        check_training(run.training, index, workers)
        folder = run.storage.absolute() / f"{run.name}-{identity[:12]}"
        clear_finished(run, folder)
        journal = Journal.start(folder / _JOURNAL_NAME, run.experiment, run.name)
        with reported(journal, run.store, {**run.tags, "workers": str(workers)}):
            _fit(run, folder, journal, workers)
            progress = _export_best(_store(run, folder), model_folder)
            uri = model_folder.absolute().as_uri()
            JournalTracker(journal).tags({"checkpoint.best": uri})
    (folder / _FINISHED_NAME).write_text(run.training.configuration())
    return Trained(journal, progress.step, progress.metrics)


def clear_finished(run: Run, folder: Path) -> None:
    """Removes what finished trainings of this name left, and tells of unfinished ones with other settings.

    What this training left itself stays: if it was killed before its products were safe, it need not train again.
    """
    for other in run.storage.absolute().glob(f"{run.name}-{'[0-9a-f]' * 12}"):
        finished = other / _FINISHED_NAME
        if finished.is_file() and (other != folder or finished.read_text() != run.training.configuration()):
            _store(run, other).clear()
            shutil.rmtree(other)
        elif other != folder and not finished.is_file():
            say(f"[{run.name}] {other} is of an unfinished training with other settings; remove it if it is not wanted")


def _export_best(store: CheckpointStore, model_folder: Path) -> Progress:
    best = store.best()
    with store.reading(best) as checkpoint, atomic_folder(model_folder) as partial:
        try:
            for name in best.files:
                shutil.copyfile(checkpoint / name, partial / name)
            sync_folder(partial)
        except OSError as error:
            raise PsclapError(
                f"the best checkpoint cannot be copied to {model_folder} ({error.strerror or error}); make room and "
                "run it again: it need not train again"
            ) from error
        return read_progress(partial)


def _identity(training: Training, index: ShardIndex) -> str:
    digest = hashlib.sha256(json.dumps(training.identity(index), sort_keys=True).encode())
    library = Path(psclap.__file__).parent
    for source in sorted(library.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _num_workers(resources: ResourcesConfig) -> int:
    gpus = num_gpus()
    if not gpus:
        needed, cpus = resources.cpu_workers * resources.threads_per_cpu_worker, num_cpus()
        if needed > cpus:
            raise PsclapError(
                f"resources: {resources.cpu_workers} CPU workers of {resources.threads_per_cpu_worker} threads need "
                f"{needed} cores and the cluster has {cpus}; lower resources.cpu_workers"
            )
        return resources.cpu_workers
    if resources.gpu_workers is not None and resources.gpu_workers > gpus:
        raise PsclapError(
            f"resources.gpu_workers {resources.gpu_workers} exceeds the cluster's {gpus} GPUs; "
            "lower it, or set it to null to use all of them"
        )
    return resources.gpu_workers or gpus


def _fit(run: Run, folder: Path, journal: Journal, workers: int) -> None:
    """Trains to the end. Raises KeyboardInterrupt where a signal ended it before, with a checkpoint written."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = num_gpus() > 0
    threads = None if use_gpu else run.resources.threads_per_cpu_worker
    flag, failure = StopFlag(), folder / _FAILURE_NAME
    failure.unlink(missing_ok=True)
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "worker": _Worker(run.training, _store(run, folder), journal, flag, threads, failure, folder / "hangs")
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker=None if use_gpu else {"CPU": threads},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=run.resources.max_failures),
        ),
    )
    try:
        _, stopped = run_until_stopped(trainer.fit, flag, say)
    except WorkerGroupError:
        if not failure.exists():
            raise
    if failure.exists():  # what a user can mend ends as its own sentence, not as a report on workers
        raise PsclapError(f"{run.name}: {failure.read_text()}")
    if stopped:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class _Worker:
    """What a worker needs; it is sent to each."""

    training: Training
    store: CheckpointStore
    journal: Journal
    flag: StopFlag
    threads: int | None
    failure: Path
    hangs: Path


def _work(config: Mapping[str, _Worker]) -> None:
    """One worker; runs in a process of Ray's."""
    import ray.train
    import ray.train.torch
    import torch

    worker = config["worker"]
    if worker.failure.exists():  # Ray starts workers anew whatever they failed of; this needs a user first
        return
    if worker.threads:
        torch.set_num_threads(worker.threads)
    rank = ray.train.get_context().get_world_rank()
    worker.hangs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        tracker: Tracker = NullTracker()
        if rank == 0:
            tracker = journal_tracker = JournalTracker(worker.journal)
            stack.enter_context(system_metrics(journal_tracker))
            _tell_hangs(worker, tracker)
        try:
            train(
                worker.training,
                tracker,
                worker.store,
                device=ray.train.torch.get_device(),
                signals=RaySignals(worker.flag),
                hang_report=worker.hangs / f"rank-{rank}-{os.getpid()}.txt",
            )
        except PsclapError as error:
            worker.failure.write_text(str(error))
            raise


def _tell_hangs(worker: _Worker, tracker: Tracker) -> None:
    for report in worker.hangs.glob("rank-*.txt"):
        if report.stat().st_size:
            told = report.replace(report.with_suffix(".told"))
            timeout_s = worker.training.hang_timeout_s
            tracker.note(f"a worker made no progress for {timeout_s:g} s; {told} says where it was")


def _store(run: Run, folder: Path) -> CheckpointStore:
    url = run.training.checkpoints.url
    location = join(url, folder.name) if url else folder / "checkpoints"
    return CheckpointStore(location, run.training.checkpoints)
