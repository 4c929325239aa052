"""A training as a run: on Ray Train, one laptop or many GPU nodes with the same code, or in this very process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cluster import num_cpus, num_gpus, ray_session
from pipelines.keeper import Keeper
from pipelines.sender import reported
from pipelines.stopping import OwnFlag, run_until_stopped
from pipelines.system_metrics import system_metrics
from pipelines.tracking import TrackingStore
from pipelines.worker import Worker, work
from psclap import log
from psclap.errors import PsclapError, first_line
from psclap.files import alone, atomic_folder, library_sha256, sync_folder
from psclap.loop_config import ResourcesConfig
from psclap.shards.index import ShardIndex
from psclap.storage import join
from psclap.training.checkpoint import Progress, read_progress
from psclap.training.journal import Journal, JournalTracker
from psclap.training.journal_copy import JournalCopy
from psclap.training.loop import check_training, train
from psclap.training.spec import Training
from psclap.training.store import CheckpointStore

if TYPE_CHECKING:
    from ray.train import WorkerGroupError

_JOURNAL_NAME = "journal"
_FINISHED_NAME = "finished"


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
    on_ray = _is_for_ray(run.resources)
    # A stage lives on when only the `dvc` that started it is killed; two must not write to one journal.
    with alone(run.storage / f"{run.name}.lock"), ray_session() if on_ray else nullcontext():
        workers = _num_workers(run.resources) if on_ray else 0
        check_training(run.training, index, max(1, workers))
        folder = run.storage.absolute() / f"{run.name}-{identity[:12]}"
        clear_finished(run, folder)
        copy = _copy(run, folder)
        if copy:
            copy.restore()
        journal = Journal.start(folder / _JOURNAL_NAME, run.experiment, run.name)
        with reported(journal, run.store, {**run.tags, "workers": str(max(1, workers))}, copy):
            if workers:
                _fit(run, folder, journal, workers)
            else:
                _fit_here(run, folder, journal)
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
            unfinished = f"{other} is of an unfinished training with other settings; remove it if it is not wanted"
            log.info(f"[{run.name}] {unfinished}", name=run.name)


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
    identity = json.dumps(training.identity(index), sort_keys=True)
    return hashlib.sha256(f"{identity} {library_sha256()}".encode()).hexdigest()


def _is_for_ray(resources: ResourcesConfig) -> bool:
    """Whether there is, or may be, more than this process to train with."""
    import torch

    return bool(resources.cpu_workers or os.environ.get("RAY_ADDRESS") or torch.cuda.is_available())


def _num_workers(resources: ResourcesConfig) -> int:
    """The workers that Ray is to start; 0: this process trains."""
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


def _fit_here(run: Run, folder: Path, journal: Journal) -> None:
    """Trains to the end in this process. Raises KeyboardInterrupt as `_fit`."""
    import torch

    copy, flag = _copy(run, folder), OwnFlag()
    tracker = JournalTracker(journal, copy.update if copy else None)

    def go_on() -> None:
        torch.set_num_threads(run.resources.threads_per_cpu_worker)
        with system_metrics(tracker.system):
            train(run.training, tracker, _store(run, folder), signals=flag)

    _, stopped = run_until_stopped(go_on, flag, log.info)
    if stopped:
        raise KeyboardInterrupt


def _fit(run: Run, folder: Path, journal: Journal, workers: int) -> None:
    """Trains to the end on Ray. Raises KeyboardInterrupt where a signal ended it before, with a checkpoint written."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig

    from pipelines.trainer import Trainer

    use_gpu = num_gpus() > 0
    threads = None if use_gpu else run.resources.threads_per_cpu_worker
    keeper = Keeper(journal, _copy(run, folder), folder / "hangs", run.training.hang_timeout_s)
    reads = [Path(name).absolute() for name in run.training.recipe.reads() if Path(name).is_dir()]
    worker = Worker(run.training, _store(run, folder), journal, journal.run, keeper, threads, reads)
    trainer = Trainer(
        work,
        train_loop_config={"worker": ray.put(worker)},  # what it is of takes seconds to import: for workers only
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
        _, stopped = run_until_stopped(trainer.fit, keeper.flag, log.info)
    except WorkerGroupError as error:
        keeper.collect_hangs(folder.name)
        if keeper.failure() is None:
            raise _of_machines(run, error) from error
    if (sentence := keeper.failure()) is not None:  # what a user can mend is no report on workers
        raise PsclapError(f"{run.name}: {sentence}")
    if stopped:
        raise KeyboardInterrupt


def _of_machines(run: Run, error: WorkerGroupError) -> Exception:
    """A sentence where workers died; else the error itself, which is the code's."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    for rank, failure in error.worker_failures.items():
        if isinstance(failure, WorkerHealthCheckFailedError):
            return PsclapError(
                f"{run.name}: workers died, or their nodes were lost, more than resources.max_failures "
                f"({run.resources.max_failures}) times, the last time rank {rank} ({first_line(failure)}). Memory that "
                "runs out is the usual reason; run it again, and it goes on from the last checkpoint"
            )
    return error


def _copy(run: Run, folder: Path) -> JournalCopy | None:
    """The journal's, where the checkpoints lie at a URL."""
    url = run.training.checkpoints.url
    return JournalCopy(folder / _JOURNAL_NAME, join(join(url, folder.name), _JOURNAL_NAME)) if url else None


def _store(run: Run, folder: Path) -> CheckpointStore:
    url = run.training.checkpoints.url
    location = join(url, folder.name) if url else folder / "checkpoints"
    return CheckpointStore(location, run.training.checkpoints)
