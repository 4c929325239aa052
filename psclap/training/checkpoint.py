"""Checkpoints: a transformers folder with the trainer's state beside it, and no pickle anywhere.

    config.json, model.safetensors, tokenizer and processor files   the model
    optimizer.safetensors                                           the optimiser's tensors by parameter name
    progress.json                                                   step, position, metrics, what it was trained on

The random state needs no file: whatever is drawn depends on (seed, step, rank) or on the loader's position.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from psclap.errors import CheckpointError
from psclap.files import write_json
from psclap.loader import Position
from psclap.schema import OPTIMIZER_NAME
from psclap.training.task import ContrastiveTask

_PROGRESS_NAME = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a training is: optimiser steps done, the loader's position, and the identity of the training."""

    step: int
    position: Position
    identity: Mapping[str, Any]
    metrics: Mapping[str, float]


def save_checkpoint(folder: Path, task: ContrastiveTask, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Writes a checkpoint into an existing folder; equal states give equal bytes."""
    task.model.save_pretrained(folder)
    task.processor.save_pretrained(folder)
    save_file(_optimizer_tensors(task, optimizer), folder / OPTIMIZER_NAME)
    write_json(folder / _PROGRESS_NAME, asdict(progress))


def read_progress(folder: Path) -> Progress:
    """The progress of a checkpoint. Raises CheckpointError where it cannot be read."""
    try:
        values = json.loads((folder / _PROGRESS_NAME).read_text())
        return Progress(**{**values, "position": Position(**values["position"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder} is no training checkpoint: {_PROGRESS_NAME}: {error}") from error


def load_trainer_state(
    folder: Path, task: ContrastiveTask, optimizer: torch.optim.Optimizer, identity: Mapping[str, Any]
) -> Progress:
    """Puts a checkpoint's weights and optimiser state into `task` and `optimizer`; returns its progress.

    Raises CheckpointError where the checkpoint is of another training (data, configuration, architecture).
    """
    progress = read_progress(folder)
    changed = sorted(key for key in identity if progress.identity.get(key) != identity[key])
    if changed:
        raise CheckpointError(
            f"{folder} was trained with another {', '.join(changed)}; remove the run's folder to start anew"
        )
    try:
        task.model.load_state_dict(load_file(folder / "model.safetensors"))
        tensors = load_file(folder / OPTIMIZER_NAME)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} does not fit this model: {error}") from error
    _restore_optimizer(task, optimizer, tensors)
    return progress


def _names(task: ContrastiveTask, optimizer: torch.optim.Optimizer) -> list[str]:
    """Parameter names in the order in which the optimiser numbers its parameters."""
    name_of = {id(parameter): name for name, parameter in task.model.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(task: ContrastiveTask, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    names = _names(task, optimizer)
    return {
        f"{names[number]}/{key}": tensor.contiguous()
        for number, entries in state.items()
        for key, tensor in entries.items()
    }


def _restore_optimizer(
    task: ContrastiveTask, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    number_of = {name: number for number, name in enumerate(_names(task, optimizer))}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for path, tensor in tensors.items():
        name, key = path.rsplit("/", 1)
        state.setdefault(number_of[name], {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
