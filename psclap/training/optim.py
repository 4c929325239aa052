"""The optimiser, the learning rate (a pure function of the step), frozen weights and averaged ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from psclap.errors import PsclapError
from psclap.loop_config import LoopConfig


def freeze(model: nn.Module, names: Sequence[str]) -> None:
    """Stops the training of the named parameters and of all parameters of the named modules.

    Raises PsclapError for a name that the model does not have, and where nothing would be left to train.
    """
    parameters = dict(model.named_parameters())
    for name in names:
        chosen = [parameter for path, parameter in parameters.items() if f"{path}.".startswith(f"{name}.")]
        if not chosen:
            modules = sorted({path.split(".")[0] for path in parameters})
            raise PsclapError(f"train.*.freeze: the model has no {name!r}; it has {', '.join(modules)} and their parts")
        for parameter in chosen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise PsclapError(f"train.*.freeze: {list(names)} leaves nothing to train; leave a projection out")


def build_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameters that train; norms, biases and the logit scale are not decayed."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if _is_matrix(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if not _is_matrix(p)], "weight_decay": 0.0},
    ]
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    first, second = config.adam_betas
    # Fused: one pass over the weights, and a step can be left out by a flag on the device, without waiting for it.
    return optimizer_class(
        [group for group in groups if group["params"]], lr=config.learning_rate, betas=(first, second), fused=True
    )


def _is_matrix(parameter: torch.Tensor) -> bool:
    """Whether it has two dimensions at least; those of size 1, as gains may have, do not count."""
    return sum(size > 1 for size in parameter.shape) >= 2


def learning_rate(step: int, total_steps: int, config: LoopConfig) -> float:
    """The rate of step number `step`, counted from 0: linear warm-up, then as `schedule` says."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "inverse_sqrt":  # (Vaswani et al. 2017, section 5.3), with its peak where ours is
        return config.learning_rate * math.sqrt(config.warmup_steps / (step + 1))
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class WeightAverage:
    """The exponential moving average of the weights that train, by parameter name.

    After step t, counted from 0: average += (1 - d)(weight - average) with d = min(decay, (1 + t) / (10 + t)), so
    that the weights of the start are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._decay = decay
        self._current = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {name: parameter.detach().clone() for name, parameter in self._current.items()}

    @torch.no_grad()
    def update(self, step: int, was_taken: torch.Tensor) -> None:
        """Takes in the weights after a step; where that was not taken, known on the device, nothing changes."""
        decay = min(self._decay, (1 + step) / (10 + step))
        share = was_taken.float() * (1 - decay)
        torch._foreach_lerp_(list(self.weights.values()), list(self._current.values()), [share] * len(self.weights))

    @torch.no_grad()
    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Takes the average from a checkpoint. Raises KeyError where it lacks a weight."""
        for name, average in self.weights.items():
            average.copy_(weights[name])

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Puts the average into the model for the length of a `with` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._current.items():
            parameter.data, self.weights[name] = self.weights[name], parameter.data
