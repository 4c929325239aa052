"""The training loop. It knows no objective, no cluster and no tracking server; any process can run it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from psclap import distributed
from psclap.config import TrainConfig
from psclap.loader import Loader, Position, check_cache, check_share
from psclap.shards.index import ShardIndex
from psclap.training.batch import Batch
from psclap.training.checkpoint import Progress, TrainerState, load_checkpoint, save_checkpoint
from psclap.training.data import build_stream, carried_tags, check_plans, check_tags, total_steps
from psclap.training.finite import FiniteGuard
from psclap.training.meter import Meter
from psclap.training.optim import WeightAverage, build_optimizer, freeze, learning_rate
from psclap.training.signals import NoSignals, Signals
from psclap.training.spec import Training, build_training_model
from psclap.training.store import CheckpointStore
from psclap.training.task import ContrastiveTask
from psclap.training.tracker import Tracker
from psclap.training.validation import Validation
from psclap.training.watchdog import Watchdog


def check_training(training: Training, index: ShardIndex, workers: int) -> None:
    """Raises PsclapError for data, batch size and workers that do not go together."""
    config = training.train
    check_share(config.global_batch_size, workers)
    stream = build_stream(config, index, training.seed)
    check_tags(config, carried_tags(index, stream))
    Validation(index, config)
    check_plans(config, stream)
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
        if watchdog.has_hung:
            tracker.note(f"there was no progress for {training.hang_timeout_s:g} s; {watchdog.report} says where")
        trainer.resume(store)
        return trainer.run(store, signals or NoSignals())


class Trainer:
    """The state of one training on one rank, and what a step does to it."""

    def __init__(
        self, training: Training, index: ShardIndex, device: torch.device, tracker: Tracker, watchdog: Watchdog
    ):
        self.training, self.config, self.index = training, training.train, index
        self.device, self.tracker, self.watchdog = device, tracker, watchdog
        self.stream = build_stream(self.config, index, training.seed)
        self.total_steps = total_steps(self.config, self.stream)
        self.validation = Validation(index, self.config)
        self.task = _build_task(training, index, carried_tags(index, self.stream)).to(device)
        model = self.task.model
        self.optimizer = build_optimizer(model, self.config)
        self.average = None if self.config.ema_decay is None else WeightAverage(model, self.config.ema_decay)
        self.state = TrainerState(self.task, self.optimizer, self.average)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.parallel = _parallel(self.task, device)
        self.hosts = distributed.HostGroup()
        self.progress = Progress(identity=training.identity(index))

    def resume(self, store: CheckpointStore) -> None:
        """Goes to the newest undamaged checkpoint, where there is one; rank 0 says which that is."""
        newest, damaged = store.newest() if distributed.rank() == 0 else (None, [])
        for problem in damaged:
            self.tracker.note(f"{problem}; going on from the one before it")
        step = self.hosts.of_first(newest.step if newest else -1)
        saved = next((saved for saved in store.saved() if saved.step == step), None)
        self.tracker.params(self.params())
        if saved is None:
            return
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
            rate, values, is_finite, is_finite_B = self.step(step, batch)
            done = step + 1
            guard.add(done, here, is_finite, is_finite_B)
            asked = [signals.leave(), signals.save()]
            leave, save, *counts = self.hosts.sum(np.array([*asked, *batch.counts], np.int64))
            meter.add(np.array(counts))
            is_last = done == self.total_steps
            validates = is_last or done % config.validate_every == 0
            if is_last or done % config.log_every == 0:
                self.settle(guard)
                self.tracker.metrics(done, {"lr": rate, **_read(values), **meter.read(done)})
            if validates or leave or save or self._is_checkpoint_step(done):
                self.settle(guard)
                self.checkpoint(done, position, guard.skipped_steps, store, validates)
                meter.restart(done)
                if self.is_over():
                    return True
            if leave:
                return False
        return True

    def is_over(self) -> bool:
        """Whether there is nothing left to train: no step, or no patience."""
        if self.progress.step >= self.total_steps:
            return True
        return self.config.patience is not None and self.progress.validations_since_best >= self.config.patience

    def step(self, step: int, batch: Batch) -> tuple[float, dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """One optimiser step, number `step` from 0, on this rank's share of a global batch.

        Returns the learning rate; the global losses, the logit scale and the gradient norm; whether the step was
        taken, which it is where loss and gradient are finite; and whether each pair's embeddings are finite, (B,).
        All stay on the device, and nothing in here waits for it.
        """
        rate = learning_rate(step, self.total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The random state is a function of the step, so that a resumed run draws the same dropout.
        torch.manual_seed(_hash_int([self.training.seed, step, distributed.rank()]))
        self.parallel.train()
        losses = self.parallel(batch.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        norm = get_total_norm(gradients)
        is_finite = torch.isfinite(norm) & torch.isfinite(losses.total.detach())
        if self.config.max_grad_norm is not None:
            clip_grads_with_norm_(self.trained, self.config.max_grad_norm, norm)
        self.optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]  # fused Adam then changes nothing
        self.optimizer.step()
        model = self.task.model
        model.clamp_logit_scale()
        if self.average is not None:
            self.average.update(step)
        values = {"loss/total": losses.total.detach(), **{f"loss/{n}": value for n, value in losses.report.items()}}
        values |= {"logit_scale": model.logit_scale.detach(), "grad_norm": norm}
        if model.logit_bias is not None:
            values["logit_bias"] = model.logit_bias.detach()
        return rate, values, is_finite, losses.is_finite

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
            score = metrics.get(self.config.best_metric)
            with store.saving(step, score) as folder:
                save_checkpoint(folder, self.state, self.progress)
            self.tracker.tags(store.tags())

    def validate(self) -> dict[str, float]:
        """The validation metrics of the model as it would be kept, the same on every rank."""
        averaged = self.average.in_model() if self.average is not None else contextlib.nullcontext()
        with averaged:
            return self.validation.metrics(self.task.model, self.task.processor, self.watchdog.alive)

    def loader(self) -> Loader:
        """This rank's batches from the present position on."""
        return Loader(
            self.stream,
            self.task.collator(),
            max_crop_s=self.config.max_crop_s,
            loading=self.training.loading,
            position=self.progress.position,
            pin_memory=self.device.type == "cuda",
        )

    def meter(self) -> Meter:
        """A meter that starts now."""
        config, tags = self.config, self.task.tag_names
        step, rate_hz = self.progress.step, self.index.sample_rate_hz
        return Meter(step, self.total_steps, config.global_batch_size, rate_hz, tags)

    def params(self) -> dict[str, Any]:
        """What a run is known by: configuration, seed, sizes; sections within sections as dotted names."""
        return {
            **asdict(self.config),
            "model": asdict(self.training.model),
            "seed": self.training.seed,
            "total_steps": self.total_steps,
            "parameters": sum(parameter.numel() for parameter in self.task.model.parameters()),
            "trainable_parameters": sum(parameter.numel() for parameter in self.trained),
            "train_examples": len(self.stream.examples),
        }

    def _is_checkpoint_step(self, done: int) -> bool:
        every = self.training.checkpoints.every_steps
        return every is not None and done % every == 0


def _build_task(training: Training, index: ShardIndex, tags: list[str]) -> ContrastiveTask:
    model, processor = build_training_model(training, index)
    freeze(model, training.train.freeze)
    compute = training.train.compute
    if compute.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if compute.compile:
        for encoder in (model.audio_model, model.text_model):
            encoder.compile(dynamic=True)  # clips and captions have many lengths
    return ContrastiveTask(model, processor, training.train, tags)


def _parallel(task: ContrastiveTask, device: torch.device) -> torch.nn.Module:
    if distributed.world_size() == 1:
        return task
    ids = [device.index] if device.type == "cuda" else None
    # No buffer changes in training: there is nothing to broadcast.
    return DistributedDataParallel(task, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def _after(
    before: Progress,
    config: TrainConfig,
    step: int,
    position: Position,
    metrics: Mapping[str, float],
    skipped_steps: int,
) -> Progress:
    """The progress at a checkpoint, from that of the one before."""
    best, since_best = before.best, before.validations_since_best
    if metrics:
        value = metrics[config.best_metric]
        is_better = best is None or value > best
        best, since_best = (value, 0) if is_better else (best, since_best + 1)
    return Progress(step, position, before.identity, metrics, best, since_best, skipped_steps)


def _read(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The values on this side: the one place where a step waits for the device."""
    return dict(zip(values, torch.stack([value.float() for value in values.values()]).tolist(), strict=True))


def _hash_int(numbers: list[int]) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
