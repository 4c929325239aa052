"""The training loop. It knows no objective, no cluster and no tracking server; any process can run it."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from psclap import distributed
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.retrieval import RetrievalSet, retrieval
from psclap.loader import Loader, Position, check_cache, check_share
from psclap.shards.index import ShardIndex
from psclap.training.checkpoint import Progress, load_trainer_state, save_checkpoint
from psclap.training.data import build_stream, carried_tags, check_plans, check_tags, total_steps
from psclap.training.optim import build_optimizer, learning_rate
from psclap.training.spec import Training, build_training_model
from psclap.training.task import ContrastiveTask
from psclap.training.tracker import Tracker

SELECTION_METRIC = "val/MRR"
"""What the best checkpoint is chosen by: mean reciprocal rank, speech to caption, on the validation set."""

OnCheckpoint = Callable[[Path | None, Mapping[str, float]], None]
"""Called on every rank, with the folder on rank 0 (gone when it returns) and the metrics there."""


def check_training(training: Training, index: ShardIndex, workers: int) -> None:
    """Raises PsclapError for data, batch size and workers that do not go together."""
    config = training.train
    check_share(config.global_batch_size, workers)
    stream = build_stream(config, index, training.seed)
    check_tags(config, carried_tags(index, stream.views))
    index.view("val", config.validation_set)
    check_plans(config, stream)
    check_cache(stream)
    index.store.check_files()


def train(
    training: Training,
    tracker: Tracker,
    on_checkpoint: OnCheckpoint,
    resume_from: Path | None = None,
    device: torch.device | None = None,
) -> None:
    """Trains on this process, as rank r of W where a process group is initialised.

    A checkpoint is handed to `on_checkpoint` every `validate_every` steps and at the end. With `resume_from`
    the run goes on exactly where that checkpoint was written. Raises PsclapError as `check_training`.
    """
    config = training.train
    device = device or torch.device("cpu")
    index = training.open_index()
    trainer = Trainer(training, index, device, tracker)
    progress = trainer.resume(resume_from) if resume_from else Progress(0, Position(), {}, {})
    loader = trainer.loader(progress.position)
    num_steps = total_steps(config, trainer.stream)
    if distributed.rank() == 0 and not resume_from:
        model = {f"model.{name}": value for name, value in asdict(training.model).items()}
        tracker.params(
            {**_flat(asdict(config)), **model, "total_steps": num_steps, "seed": training.seed, **_sizes(trainer)}
        )
    if progress.step >= num_steps:
        return
    with contextlib.closing(iter(loader)) as batches:  # type: ignore[type-var]
        trainer.run(batches, progress.step, num_steps, on_checkpoint)


class Trainer:
    """The state of one training on one rank."""

    def __init__(self, training: Training, index: ShardIndex, device: torch.device, tracker: Tracker):
        self.training, self.config, self.index = training, training.train, index
        self.device, self.tracker = device, tracker
        self.stream = build_stream(self.config, index, training.seed)
        self.validation = RetrievalSet.of(index, "val", self.config.validation_set)
        model, processor = build_training_model(training, index)
        if self.config.compute.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.task = ContrastiveTask(model, processor, self.config, carried_tags(index, self.stream.views)).to(device)
        self.optimizer = build_optimizer(model, self.config)
        self.identity = training.identity(index)
        ids = [device.index] if device.type == "cuda" else None
        self.parallel = (
            DistributedDataParallel(self.task, device_ids=ids) if distributed.world_size() > 1 else self.task
        )

    def resume(self, folder: Path) -> Progress:
        return load_trainer_state(folder, self.task, self.optimizer, self.identity)

    def loader(self, position: Position) -> Loader:
        return Loader(
            self.stream,
            self.task.collator(),
            max_crop_s=self.config.max_crop_s,
            loading=self.training.loading,
            position=position,
            pin_memory=self.device.type == "cuda",
        )

    def run(self, batches: Any, first_step: int, total_steps: int, on_checkpoint: OnCheckpoint) -> None:
        meter = _Meter(first_step, total_steps, self.config.global_batch_size)
        for step in range(first_step, total_steps):
            position, batch = meter.waiting(lambda: next(batches))
            rate, total, report = self.step(step, total_steps, batch)
            done = step + 1
            if done % self.config.log_every == 0 or done == total_steps:
                values = {"lr": rate, "logit_scale": self.task.model.logit_scale.item()}
                values |= {f"loss/{name}": value.item() for name, value in report.items()}
                _check_finite(done, total.item())
                self.tracker.metrics(done, {"loss/total": total.item(), **values, **meter.read(done)})
            if done % self.config.validate_every == 0 or done == total_steps:
                self.checkpoint(done, position, on_checkpoint)
                meter.restart(done)

    def step(self, step: int, total_steps: int, batch: Any) -> tuple[float, torch.Tensor, dict[str, torch.Tensor]]:
        """One optimiser step; returns the learning rate, the total loss and the report of its parts."""
        rate = learning_rate(step, total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The random state is a function of the step, so that a resumed run draws the same dropout.
        torch.manual_seed(_hash_int([self.training.seed, step, distributed.rank()]))
        self.parallel.train()
        total, report, _ = self.parallel(batch.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        if self.config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.task.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.task.model.clamp_logit_scale()
        return rate, total.detach(), report

    def checkpoint(self, step: int, position: Position, on_checkpoint: OnCheckpoint) -> None:
        metrics = self.validate(step)
        self.tracker.metrics(step, {name: value for name, value in metrics.items() if name != "step"})
        if distributed.rank() != 0:
            on_checkpoint(None, metrics)
            return
        with tempfile.TemporaryDirectory(prefix="psclap-checkpoint-") as folder:
            progress = Progress(step, position, self.identity, metrics)
            save_checkpoint(Path(folder), self.task, self.optimizer, progress)
            on_checkpoint(Path(folder), metrics)

    def validate(self, step: int) -> dict[str, float]:
        """Retrieval on the validation set; every rank embeds its share of the clips, and all know the result."""
        embedder = Embedder.of(self.task.model, self.task.processor)
        rows = self.validation.rows
        mine = [int(rows[number]) for number in distributed.my_share(len(rows))]
        speech = torch.from_numpy(embedder.embed_audio(self.index.read_clip(row) for row in mine))
        gathered = distributed.all_gather(speech.to(self.device))
        speech_ND = distributed.join_shares(gathered, len(rows)).cpu().numpy()
        result = retrieval(speech_ND, embedder.embed_text(self.validation.captions), self.validation.is_right)
        return {"step": step, **{f"val/{name}": value for name, value in result["audio_to_text"].items()}}


class _Meter:
    """Clips a second, the share of the time spent waiting for data, and the time left."""

    def __init__(self, step: int, total_steps: int, batch_size: int):
        self._total_steps, self._batch_size = total_steps, batch_size
        self.restart(step)

    def waiting(self, load: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        loaded = load()
        self._waited_s += time.perf_counter() - start
        return loaded

    def restart(self, step: int) -> None:
        self._since, self._waited_s, self._step = time.perf_counter(), 0.0, step

    def read(self, step: int) -> dict[str, float]:
        """The figures since the last restart, and a restart."""
        elapsed_s = time.perf_counter() - self._since
        steps = step - self._step
        figures = {
            "speed/clips_per_s": steps * self._batch_size / elapsed_s,
            "speed/data_wait_share": self._waited_s / elapsed_s,
            "speed/eta_s": (self._total_steps - step) * elapsed_s / steps,
        }
        self.restart(step)
        return figures


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sections within sections as dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = _flat(value) if isinstance(value, Mapping) else {"": value}
        flat |= {f"{name}.{key}".rstrip("."): item for key, item in inner.items()}
    return flat


def _sizes(trainer: Trainer) -> dict[str, int]:
    parameters = list(trainer.task.model.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "train_examples": len(trainer.stream.examples),
    }


def _check_finite(step: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise PsclapError(f"the loss is {loss} at step {step}; lower the learning rate or set max_grad_norm")


def _hash_int(numbers: list[int]) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
