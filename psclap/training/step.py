"""One optimiser step, with nothing in it that waits for the device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from psclap import distributed
from psclap.config import TrainConfig
from psclap.shards.index import ShardIndex
from psclap.training.batch import Batch
from psclap.training.optim import WeightAverage, build_optimizer, freeze, learning_rate
from psclap.training.spec import Training, build_training_model
from psclap.training.task import ContrastiveTask


class Taken(NamedTuple):
    """What there is to know of a step. The tensors are on the device; to read one is to wait for it."""

    learning_rate: float
    values: dict[str, torch.Tensor]
    """The global batch's losses, the logit scale after the step and the gradient norm before clipping; scalars."""
    is_finite: torch.Tensor
    """Whether loss and gradient are; if not, the step changed nothing."""
    pairs_are_finite: torch.Tensor
    """(B,) whether the embeddings of each pair of the global batch are."""


class Stepper:
    """A task, its optimiser and what else a step changes; `task` is on its device."""

    def __init__(self, task: ContrastiveTask, config: TrainConfig, total_steps: int, seed: int):
        self.task, self.config, self.total_steps, self.seed = task, config, total_steps, seed
        self.device = task.model.device
        self.trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(task.model, config)
        self.average = None if config.ema_decay is None else WeightAverage(task.model, config.ema_decay)
        self.parallel = _parallel(task, self.device)

    def step(self, step: int, batch: Batch) -> Taken:
        """Step number `step`, counted from 0, on this rank's share of a global batch."""
        rate = learning_rate(step, self.total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # The random state is a function of the step, so that a resumed run draws the same dropout.
        torch.manual_seed(_hash_int([self.seed, step, distributed.rank()]))
        self.parallel.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.parallel(batch.to(self.device))
        losses.total.backward()
        norm = get_total_norm([parameter.grad for parameter in self.trained if parameter.grad is not None])
        if self.config.max_grad_norm is not None:
            clip_grads_with_norm_(self.trained, self.config.max_grad_norm, norm)
        is_finite = torch.isfinite(norm) & torch.isfinite(losses.total.detach())
        self.optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]  # fused Adam then changes nothing
        self.optimizer.step()
        self.task.model.clamp_logit_scale()
        if self.average is not None:
            self.average.update(step, is_finite)
        values = {"loss/total": losses.total, **{f"loss/{name}": value for name, value in losses.report.items()}}
        values |= {"grad_norm": norm, **self._logit_values()}
        return Taken(rate, {name: value.detach() for name, value in values.items()}, is_finite, losses.is_finite)

    def _logit_values(self) -> dict[str, torch.Tensor]:
        model = self.task.model
        bias = {} if model.logit_bias is None else {"logit_bias": model.logit_bias}
        return {"logit_scale": model.logit_scale, **bias}


def build_task(training: Training, index: ShardIndex, tags: list[str]) -> ContrastiveTask:
    """The task of a training as it is before the first step. Raises PsclapError for weights that cannot be frozen."""
    model, processor = build_training_model(training, index)
    freeze(model, training.train.freeze)
    compute = training.train.compute
    if compute.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if compute.compile:
        for encoder in (model.audio_model, model.text_model):
            encoder.compile(dynamic=True)  # clips and captions have many lengths
    return ContrastiveTask(model, processor, training.train, tags)


def _parallel(task: ContrastiveTask, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return task
    ids = [device.index] if device.type == "cuda" else None
    # No buffer changes in training: there is nothing to broadcast.
    return DistributedDataParallel(task, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def _hash_int(numbers: list[int]) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
