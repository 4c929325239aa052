"""Small trainings for the tests of the loop."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from conftest import WAVLM

from psclap.config import EncoderConfig, ModelConfig, TrainConfig, parse_params
from psclap.loop_config import CheckpointConfig, ComputeConfig
from psclap.training.dual_encoder import DualEncoderRecipe
from psclap.training.loop import train
from psclap.training.signals import Signals
from psclap.training.spec import Training
from psclap.training.store import CheckpointStore
from psclap.training.tracker import NullTracker


class Recorder(NullTracker):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.notes: list[str] = []

    def metrics(self, step: int, metrics: Any) -> None:
        self.logged.append((step, dict(metrics)))

    def note(self, text: str) -> None:
        self.notes.append(text)


def mini(params_mapping: dict[str, Any], shards: Path, variant: str = "intrinsic", **changes: Any) -> Training:
    params = parse_params(params_mapping)
    dropout = changes.pop("dropout", 0.1)
    model: ModelConfig = dataclasses.replace(params.model, projection_dropout=dropout)
    if changes.pop("wavlm", False):
        own = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
        config = {**WAVLM, **dict.fromkeys(own, dropout)}
        speech = EncoderConfig(pooling="mean", config=config)
        model = dataclasses.replace(model, speech=speech, normalise_audio=True)
    checkpoints = changes.pop("checkpoints", CheckpointConfig())
    settings = {"global_batch_size": 16, "max_steps": 6, "validate_every": 2, "log_every": 1, **changes}
    compute = {f.name: settings.pop(f.name) for f in dataclasses.fields(ComputeConfig) if f.name in settings}
    sampling = dataclasses.replace(params.train[variant].sampling, rare_block_size=4)
    settings |= {"sampling": sampling, "compute": ComputeConfig(**compute)}
    train_config: TrainConfig = dataclasses.replace(params.train[variant], **settings)
    return Training(shards, DualEncoderRecipe(model, train_config), seed=7, checkpoints=checkpoints)


def run(training: Training, folder: Path, resume_from: Path | None = None, signals: Signals | None = None) -> Recorder:
    """Trains with `folder` as the store; `resume_from` is a checkpoint that is put there first."""
    tracker = Recorder()
    if resume_from:
        shutil.copytree(resume_from, folder / resume_from.name)
    train(training, tracker, CheckpointStore(folder, CheckpointConfig(keep_last=100)), signals=signals)
    return tracker


def at(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def losses(tracker: Recorder) -> list[float]:
    return [metrics["loss/total"] for _, metrics in tracker.logged if "loss/total" in metrics]
