"""One optimiser step, with nothing in it that waits for the device."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from psclap import distributed
from psclap.loop_config import LoopConfig
from psclap.training.optim import WeightAverage, build_optimizer, learning_rate


class Taken(NamedTuple):
    """What there is to know of a step. The tensors are on the device; to read one is to wait for it."""

    learning_rate: float
    values: dict[str, torch.Tensor]
    """The global batch's losses, the task's own values after the step, the gradient norm before clipping; scalars."""
    is_finite: torch.Tensor
    """Whether loss and gradient are; if not, the step changed nothing."""
    clips_are_finite: torch.Tensor
    """(B,) whether what the model makes of each clip of the global batch is."""


class Stepper:
    """A Task (`psclap.training.recipe`), its optimiser and what else a step changes; `task` is on its device."""

    def __init__(self, task: Any, config: LoopConfig, total_steps: int, seed: int):
        self.task, self.config, self.total_steps, self.seed = task, config, total_steps, seed
        self.device = task.model.device
        self.trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(task.model, config)
        self.average = None if config.ema_decay is None else WeightAverage(task.model, config.ema_decay)
        self.parallel = _parallel(task, self.device)

    def step(self, step: int, batch: Any) -> Taken:
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
        self.task.after_step()
        if self.average is not None:
            self.average.update(step, is_finite)
        values = {"loss/total": losses.total, **{f"loss/{name}": value for name, value in losses.report.items()}}
        values |= {"grad_norm": norm, **self.task.values()}
        return Taken(rate, {name: value.detach() for name, value in values.items()}, is_finite, losses.is_finite)


def _parallel(task: Any, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return task
    ids = [device.index] if device.type == "cuda" else None
    # What buffers change in training (spectral norm's) changes alike on every rank: there is nothing to broadcast.
    return DistributedDataParallel(task, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def _hash_int(numbers: list[int]) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
