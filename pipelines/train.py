"""Ray Train around `psclap.training`: the same code on one laptop and on many GPU nodes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psclap
from pipelines.cluster import num_cpus, num_gpus, ray_session
from pipelines.sender import reported
from pipelines.system_metrics import system_metrics
from pipelines.tracking import TrackingStore
from psclap.config import ResourcesConfig
from psclap.errors import PsclapError
from psclap.files import atomic_folder
from psclap.shards.index import ShardIndex
from psclap.training.journal import Journal, JournalTracker
from psclap.training.loop import SELECTION_METRIC, check_training, train
from psclap.training.spec import Training
from psclap.training.tracker import NullTracker, Tracker

_JOURNAL_NAME = "journal"


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
    """The outcome of a run: its journal, the metrics of the chosen checkpoint, and the storage that holds both."""

    journal: Journal
    metrics: Mapping[str, float]
    storage: Path

    def remove_storage(self) -> None:
        """Drops what a restart would need; to be called when the run's products are safe."""
        shutil.rmtree(self.storage)


def train_variant(run: Run, model_folder: Path) -> Trained:
    """Trains and leaves the best checkpoint, by SELECTION_METRIC, in `model_folder`.

    What a restart needs is kept under `run.storage` until `remove_storage`: the same call after a crash or an
    interrupt goes on from the last checkpoint, in the same MLflow run, as long as data, configuration and
    psclap's code are the same. Raises PsclapError for bad input before any worker starts.
    """
    index = run.training.open_index()
    identity = _identity(run.training, index)
    with ray_session():
        workers = _num_workers(run.resources)
        check_training(run.training, index, workers)
        folder = run.storage.absolute() / f"{run.name}-{identity[:12]}"
        journal = _journal(run, folder)
        with reported(journal, run.store, {**run.tags, "workers": str(workers)}):
            best = _fit(run, folder, journal, workers)
        with atomic_folder(model_folder) as partial:
            shutil.copytree(best[0].path, partial, dirs_exist_ok=True)
    return Trained(journal, best[1], folder)


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


def _journal(run: Run, folder: Path) -> Journal:
    """The journal of this run: that of the interrupted run where there is one."""
    if folder.exists():
        print(f"[{run.name}] going on with the interrupted run in {folder}", flush=True)
    return Journal.start(folder / _JOURNAL_NAME, run.experiment, run.name)


def _fit(run: Run, folder: Path, journal: Journal, workers: int) -> tuple[Any, Mapping[str, float]]:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = num_gpus() > 0
    threads = run.resources.threads_per_cpu_worker
    trainer = TorchTrainer(
        _work,
        train_loop_config={"training": run.training, "journal": journal, "threads": None if use_gpu else threads},
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
            checkpoint_config=CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute=SELECTION_METRIC, checkpoint_score_order="max"
            ),
        ),
    )
    try:
        result = trainer.fit()
    except SystemExit:  # Ray Train's answer to Ctrl-C, after it has stopped the workers
        raise KeyboardInterrupt from None
    except WorkerGroupError as error:
        # What a user can mend ends as its own sentence, not as a report on workers.
        for failure in error.worker_failures.values():
            if isinstance(cause := getattr(failure, "_base_exc", failure), PsclapError):
                raise PsclapError(f"{run.name}: {cause}") from error
        raise
    # Of equal scores the later checkpoint: it has seen more.
    return max(result.best_checkpoints, key=lambda pair: (pair[1][SELECTION_METRIC], pair[1]["step"]))


def _work(config: dict[str, Any]) -> None:
    """One worker; runs in a process of Ray's."""
    import ray.train
    import torch

    if config["threads"]:
        torch.set_num_threads(config["threads"])
    with contextlib.ExitStack() as stack:
        tracker: Tracker = NullTracker()
        if ray.train.get_context().get_world_rank() == 0:
            tracker = journal_tracker = JournalTracker(config["journal"])
            stack.enter_context(system_metrics(journal_tracker))
        _train(config["training"], tracker)


def _train(training: Training, tracker: Tracker) -> None:
    """Trains from the last checkpoint on, and hands each new one to Ray Train."""
    import ray.train
    import ray.train.torch

    def on_checkpoint(folder: Path | None, metrics: Mapping[str, float]) -> None:
        checkpoint = ray.train.Checkpoint.from_directory(folder) if folder else None
        ray.train.report(dict(metrics), checkpoint=checkpoint)

    last = ray.train.get_checkpoint()
    device = ray.train.torch.get_device()
    if last is None:
        train(training, tracker, on_checkpoint, device=device)
        return
    with last.as_directory() as folder:
        train(training, tracker, on_checkpoint, resume_from=Path(folder), device=device)
