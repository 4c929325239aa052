"""The training loop. It knows no objective, no cluster and no tracking server; any process can run it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from psclap import distributed
from psclap.errors import CheckpointError
from psclap.loader import Loader, Position, check_cache, check_share
from psclap.loop_config import LoopConfig
from psclap.shards.index import ShardIndex
from psclap.training.checkpoint import Progress, TrainerState, load_checkpoint, save_checkpoint
from psclap.training.finite import FiniteGuard
from psclap.training.meter import Meter
from psclap.training.plans import check_plans, total_steps
from psclap.training.signals import NoSignals, Signals
from psclap.training.spec import Training
from psclap.training.step import Stepper
from psclap.training.store import CheckpointStore
from psclap.training.tracker import Tracker
from psclap.training.watchdog import Watchdog


def check_training(training: Training, index: ShardIndex, workers: int) -> None:
    """Raises PsclapError for data, batch size and workers that do not go together."""
    recipe = training.recipe
    stream = recipe.stream(index, training.seed)
    check_share(stream, workers)
    recipe.check(index, stream)
    recipe.validation(index)
    check_plans(recipe.train, stream)
    check_cache(stream)
    index.store.check_files()


def train(
    training: Training,
    tracker: Tracker,
    store: CheckpointStore,
    *,
    device: torch.device | None = None,
    signals: Signals | None = None,
    hang_report: Path | None = None,
) -> bool:
    """Trains on this process, as rank r of W where a process group is initialised; returns whether it is at its end.

    It goes on exactly where the newest checkpoint of `store` was written, by however many ranks. It is not at its
    end where `signals` asked to leave: then the checkpoint of that step is the newest. Raises PsclapError as
    `check_training`, and for a loss that is not finite. `hang_report`: where `Watchdog` writes.
    """
    index = training.open_index()
    with Watchdog(training.hang_timeout_s, hang_report) as watchdog:
        trainer = Trainer(training, index, device or torch.device("cpu"), tracker, watchdog)
        trainer.resume(store)
        return trainer.run(store, signals or NoSignals())


class Trainer:
    """The state of one training on one rank."""

    def __init__(
        self, training: Training, index: ShardIndex, device: torch.device, tracker: Tracker, watchdog: Watchdog
    ):
        self.training, self.config, self.index = training, training.train, index
        self.device, self.tracker, self.watchdog = device, tracker, watchdog
        self.stream = training.recipe.stream(index, training.seed)
        self.total_steps = total_steps(self.config, self.stream)
        self.validation = training.recipe.validation(index)
        self.task = training.recipe.task(index, self.stream, training.seed).to(device)
        self.stepper = Stepper(self.task, self.config, self.total_steps, training.seed)
        self.state = TrainerState(self.task, self.stepper.optimizer, self.stepper.average)
        self.hosts = distributed.HostGroup()
        self.progress = Progress(identity=training.identity(index))

    def resume(self, store: CheckpointStore) -> None:
        """Goes to the newest undamaged checkpoint, where there is one; rank 0 says which that is."""
        newest, damaged = store.newest() if distributed.rank() == 0 else (None, [])
        for problem in damaged:
            self.tracker.note(f"{problem}; it is removed, and the one before it taken")
        (step,) = self.hosts.of_first([newest.step if newest else -1])
        self.tracker.params(self.params())
        if step < 0:
            return
        saved = next((saved for saved in store.saved() if saved.step == step), None)
        if self.hosts.sum(np.array([saved is None], np.int64))[0] or saved is None:
            raise CheckpointError(
                f"not every worker sees the checkpoint of step {step:.0f} in {store.location}; that folder must be one "
                "that all machines share"
            )
        if distributed.rank() == 0:
            store.remove_after(saved.step)  # what is damaged is not to outlive what is whole
        with store.reading(saved) as folder:
            self.progress = load_checkpoint(folder, self.state, self.progress.identity)
        self.tracker.note(f"going on from step {saved.step} of {self.total_steps}")

    def run(self, store: CheckpointStore, signals: Signals) -> bool:
        """Steps until the end, or until a signal asks to leave; returns whether it is at its end."""
        guard = FiniteGuard(self.stream, self.config.max_skipped_steps, self.progress.skipped_steps)
        if self.is_over():
            return True
        with contextlib.closing(iter(self.loader())) as batches:  # type: ignore[type-var]
            return self._run(batches, guard, store, signals)

    def _run(self, batches: Any, guard: FiniteGuard, store: CheckpointStore, signals: Signals) -> bool:
        config, position = self.config, self.progress.position
        meter = self.meter()
        for step in range(self.progress.step, self.total_steps):
            self.watchdog.alive()
            here, (position, batch) = position, meter.waiting(lambda: next(batches))
            taken = self.stepper.step(step, batch)
            done = step + 1
            guard.add(done, here, taken.is_finite, taken.clips_are_finite)
            asked = [signals.leave(), signals.save()]
            leave, save, *counts = self.hosts.sum(np.array([*asked, *batch.counts], np.int64))
            meter.add(np.array(counts))
            is_last = done == self.total_steps
            validates = is_last or done % config.validate_every == 0
            if is_last or done % config.log_every == 0:
                self.settle(guard)
                self.tracker.metrics(done, {"lr": taken.learning_rate, **_read(taken.values), **meter.read(done)})
            if validates or leave or save or self._is_checkpoint_step(done):
                self.settle(guard)
                self.checkpoint(done, position, guard.skipped_steps, store, validates)
                meter.restart(done)
                if self.is_over():
                    if not is_last:
                        self.tracker.note(f"no better {config.best_metric} in {config.patience} validations: the end")
                    return True
            if leave:
                return False
        return True

    def is_over(self) -> bool:
        """Whether there is nothing left to train: no step, or no patience."""
        if self.progress.step >= self.total_steps:
            return True
        return self.config.patience is not None and self.progress.validations_since_best >= self.config.patience

    def settle(self, guard: FiniteGuard) -> None:
        """Tells of the steps that were not taken; raises where they are too many."""
        for line in guard.settle():
            self.tracker.note(line)

    def checkpoint(
        self, step: int, position: Position, skipped_steps: int, store: CheckpointStore, validates: bool
    ) -> None:
        """Validates, where it is time to, and writes a checkpoint; every rank takes part in the first."""
        metrics = self.validate() if validates else {}
        if metrics:
            self.tracker.metrics(step, metrics)
        self.progress = _after(self.progress, self.config, step, position, metrics, skipped_steps)
        if distributed.rank() == 0:
            score = self.config.score(metrics) if metrics else None
            with store.saving(step, score) as folder:
                save_checkpoint(folder, self.state, self.progress)
                self.tracker.secure()  # a run that goes on from here is not to lack what came before
            self.tracker.tags(store.tags())

    def validate(self) -> dict[str, float]:
        """The validation metrics of the model as it would be kept, the same on every rank."""
        average = self.stepper.average
        averaged = average.in_model() if average is not None else contextlib.nullcontext()
        with averaged:
            metrics = self.validation.metrics(self.task, self.watchdog.alive)
        # Rank 0's: machines differ in the last bits, and all ranks must end at the same step.
        return dict(zip(metrics, self.hosts.of_first([*metrics.values()]), strict=True))

    def loader(self) -> Loader:
        """This rank's batches from the present position on."""
        return Loader(
            self.stream,
            self.task.collator(),
            max_crop_s=self.training.recipe.max_crop_s,
            loading=self.training.loading,
            position=self.progress.position,
            num_batches=self.total_steps - self.progress.step,
            pin_memory=self.device.type == "cuda",
        )

    def meter(self) -> Meter:
        """A meter that starts now."""
        return Meter(self.progress.step, self.total_steps, self.index.sample_rate_hz, self.task.count_names)

    def params(self) -> dict[str, Any]:
        """What a run is known by: configuration, seed, sizes; sections within sections as dotted names."""
        return {
            **asdict(self.config),
            **self.training.recipe.values(),
            "seed": self.training.seed,
            "total_steps": self.total_steps,
            "parameters": sum(parameter.numel() for parameter in self.task.model.parameters()),
            "trainable_parameters": sum(parameter.numel() for parameter in self.stepper.trained),
            "train_examples": len(self.stream.examples),
        }

    def _is_checkpoint_step(self, done: int) -> bool:
        every = self.training.checkpoints.every_steps
        return every is not None and done % every == 0


def _after(
    before: Progress,
    config: LoopConfig,
    step: int,
    position: Position,
    metrics: Mapping[str, float],
    skipped_steps: int,
) -> Progress:
    """The progress at a checkpoint, from that of the one before."""
    best, since_best = before.best, before.validations_since_best
    if metrics:
        value = config.score(metrics)
        is_better = best is None or value > best
        best, since_best = (value, 0) if is_better else (best, since_best + 1)
    return Progress(step, position, before.identity, metrics, best, since_best, skipped_steps)


def _read(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The values on this side: the one place where a step waits for the device."""
    return dict(zip(values, torch.stack([value.float() for value in values.values()]).tolist(), strict=True))
