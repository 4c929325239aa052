"""Checkpoints: a transformers folder with the trainer's state beside it, and no pickle anywhere.

    config.json, model.safetensors, tokenizer and processor files   the model as it is validated and used
    trainer.safetensors                                             optimiser tensors, and the raw weights under EMA
    progress.json                                                   step, position, metrics, what it was trained on

The random state needs no file: whatever is drawn depends on (seed, step, rank) or on the loader's position.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from psclap.errors import CheckpointError
from psclap.files import share_files, write_json
from psclap.loader import Position
from psclap.schema import TRAINER_STATE_NAME
from psclap.training.optim import WeightAverage
from psclap.training.recipe import Task

_PROGRESS_NAME = "progress.json"
_WEIGHTS, _OPTIMIZER = "weights/", "optimizer/"


@dataclass(frozen=True)
class Progress:
    """How far a training is, and the identity of the training.

    `metrics` are those of the validation at this step, where there was one; `best` is the best score by
    `best_metric` so far, `validations_since_best` counts from there.
    """

    step: int = 0
    position: Position = field(default_factory=Position)
    identity: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: float | None = None
    validations_since_best: int = 0
    skipped_steps: int = 0


@dataclass(frozen=True)
class TrainerState:
    """All that a step changes."""

    task: Task
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None


def save_checkpoint(folder: Path, state: TrainerState, progress: Progress) -> None:
    """Writes a checkpoint into an existing folder; equal states give equal bytes."""
    weights, tensors = state.task.model.state_dict(), _optimizer_tensors(state)
    if state.average is not None:
        tensors |= {_WEIGHTS + name: weights[name].contiguous() for name in state.average.weights}
        weights = {**weights, **state.average.weights}
    state.task.save(folder, weights)
    save_file(tensors, folder / TRAINER_STATE_NAME)
    write_json(folder / _PROGRESS_NAME, asdict(progress))
    share_files(folder)


def read_progress(folder: Path) -> Progress:
    """The progress of a checkpoint. Raises CheckpointError where it cannot be read."""
    try:
        values = json.loads((folder / _PROGRESS_NAME).read_text())
        return Progress(**{**values, "position": Position(**values["position"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder} is no training checkpoint: {_PROGRESS_NAME}: {error}") from error


def load_checkpoint(folder: Path, state: TrainerState, identity: Mapping[str, Any]) -> Progress:
    """Puts a checkpoint's weights and optimiser state into `state`; returns its progress.

    Raises CheckpointError where the checkpoint is of another training (data, configuration, architecture).
    """
    progress = read_progress(folder)
    changed = sorted(key for key in identity if progress.identity.get(key) != identity[key])
    if changed:
        raise CheckpointError(
            f"{folder} was trained with another {', '.join(changed)}; remove the run's folder to start anew"
        )
    try:
        weights = load_file(folder / "model.safetensors")
        tensors = load_file(folder / TRAINER_STATE_NAME)
        if state.average is not None:
            state.average.load(weights)
            weights |= _within(tensors, _WEIGHTS)
        state.task.model.load_state_dict(weights)
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder} does not fit this model: {error}") from error
    _restore_optimizer(state, _within(tensors, _OPTIMIZER))
    return progress


def _within(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _names(state: TrainerState) -> list[str]:
    """Parameter names in the order in which the optimiser numbers its parameters."""
    name_of = {id(parameter): name for name, parameter in state.task.model.named_parameters()}
    return [name_of[id(parameter)] for group in state.optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(state: TrainerState) -> dict[str, torch.Tensor]:
    names = _names(state)
    return {
        f"{_OPTIMIZER}{names[number]}/{key}": tensor.contiguous()
        for number, entries in state.optimizer.state_dict()["state"].items()
        for key, tensor in entries.items()
    }


def _restore_optimizer(state: TrainerState, tensors: Mapping[str, torch.Tensor]) -> None:
    number_of = {name: number for number, name in enumerate(_names(state))}
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for path, tensor in tensors.items():
        name, key = path.rsplit("/", 1)
        entries.setdefault(number_of[name], {})[key] = tensor
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": entries, "param_groups": groups})
