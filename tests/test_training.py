"""The loop in plain processes: exact gradients over ranks, exact resume, and what is refused at the start."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import WAVLM
from safetensors.torch import load_file

from psclap.config import ComputeConfig, EncoderConfig, ModelConfig, TrainConfig, parse_params
from psclap.errors import CheckpointError, PsclapError
from psclap.loader import Position
from psclap.shards.index import ShardIndex
from psclap.training.checkpoint import read_progress
from psclap.training.loop import Trainer, train
from psclap.training.optim import build_optimizer, learning_rate
from psclap.training.spec import Training, build_training_model
from psclap.training.tracker import NullTracker


class Recorder(NullTracker):
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []

    def metrics(self, step: int, metrics: Any) -> None:
        self.logged.append((step, dict(metrics)))


def mini(params_mapping: dict[str, Any], shards: Path, variant: str = "intrinsic", **changes: Any) -> Training:
    params = parse_params(params_mapping)
    model: ModelConfig = dataclasses.replace(params.model, projection_dropout=changes.pop("dropout", 0.1))
    if changes.pop("wavlm", False):
        speech = EncoderConfig(pooling="mean", config=WAVLM)
        model = dataclasses.replace(model, speech=speech, normalise_audio=True)
    settings = {"global_batch_size": 16, "max_steps": 6, "validate_every": 2, "log_every": 1}
    if "gradient_checkpointing" in changes:
        changes["compute"] = ComputeConfig(gradient_checkpointing=changes.pop("gradient_checkpointing"))
    sampling = dataclasses.replace(params.train[variant].sampling, rare_block_size=4)
    config: TrainConfig = dataclasses.replace(params.train[variant], sampling=sampling, **{**settings, **changes})
    return Training(shards, model, config, seed=7)


def keep_in(folder: Path) -> Callable[[Path | None, Any], None]:
    def on_checkpoint(checkpoint: Path | None, metrics: Any) -> None:
        if checkpoint:
            shutil.copytree(checkpoint, folder / f"step-{metrics['step']}")

    return on_checkpoint


def run(training: Training, folder: Path, resume_from: Path | None = None) -> Recorder:
    tracker = Recorder()
    train(training, tracker, keep_in(folder), resume_from)
    return tracker


def losses(tracker: Recorder) -> list[float]:
    return [metrics["loss/total"] for _, metrics in tracker.logged if "loss/total" in metrics]


def test_a_run_is_a_function_of_its_inputs(params_mapping: dict[str, Any], mini_shards: Path, tmp_path: Path) -> None:
    training = mini(params_mapping, mini_shards)
    one, two = run(training, tmp_path / "a"), run(training, tmp_path / "b")
    assert losses(one) == losses(two)
    for file in (tmp_path / "a" / "step-6").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / "step-6" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("stopped_at", [2, 4])
def test_resume_ends_bit_identical(
    params_mapping: dict[str, Any], mini_shards: Path, tmp_path: Path, stopped_at: int
) -> None:
    """The run crosses an epoch (6 steps of 16 in 96 clips), has dropout, and tags drawn afresh each step."""
    training = mini(params_mapping, mini_shards, max_steps=8)
    whole = run(training, tmp_path / "whole")
    resumed = run(training, tmp_path / "resumed", tmp_path / "whole" / f"step-{stopped_at}")
    assert losses(resumed) == losses(whole)[stopped_at:]
    for name in ("model.safetensors", "optimizer.safetensors", "progress.json"):
        one, two = (tmp_path / folder / "step-8" / name for folder in ("whole", "resumed"))
        assert one.read_bytes() == two.read_bytes(), name


def test_resuming_a_finished_run_does_nothing(
    params_mapping: dict[str, Any], mini_shards: Path, tmp_path: Path
) -> None:
    training = mini(params_mapping, mini_shards, max_steps=2)
    run(training, tmp_path / "a")
    assert run(training, tmp_path / "b", tmp_path / "a" / "step-2").logged == []


def test_a_checkpoint_of_another_training_is_refused(
    params_mapping: dict[str, Any], mini_shards: Path, tmp_path: Path
) -> None:
    run(mini(params_mapping, mini_shards, max_steps=2), tmp_path)
    other = mini(params_mapping, mini_shards, max_steps=2, learning_rate=0.5)
    with pytest.raises(CheckpointError, match="another configuration"):
        run(other, tmp_path, tmp_path / "step-2")
    (tmp_path / "step-2" / "optimizer.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="step-2"):
        run(mini(params_mapping, mini_shards, max_steps=2), tmp_path, tmp_path / "step-2")
    (tmp_path / "step-2" / "progress.json").unlink()
    with pytest.raises(CheckpointError, match=r"progress\.json"):
        read_progress(tmp_path / "step-2")


def test_a_run_of_epochs_sees_every_clip_in_each(
    params_mapping: dict[str, Any], mini_shards: Path, tmp_path: Path
) -> None:
    training = mini(params_mapping, mini_shards, "situational", max_steps=None, max_epochs=2, validate_every=100)
    run(training, tmp_path)
    progress = read_progress(tmp_path / "step-12")
    assert progress.position == Position(epoch=2, step=0)


def test_training_learns(params_mapping: dict[str, Any], mini_shards: Path, tmp_path: Path) -> None:
    training = mini(params_mapping, mini_shards, "combined", max_steps=60, warmup_steps=5, validate_every=60)
    values = losses(run(training, tmp_path))
    assert np.mean(values[-5:]) < np.mean(values[:5]) - 0.2


def test_a_tiny_wavlm_trains_with_the_published_options(
    params_mapping: dict[str, Any], mini_shards: Path, tmp_path: Path
) -> None:
    published = {"optimizer": "adam", "schedule": "constant", "warmup_steps": 0, "max_grad_norm": None}
    published |= {"weight_decay": 0.0, "duplicate_captions": "negatives", "gradient_checkpointing": True}
    training = mini(
        params_mapping, mini_shards, wavlm=True, max_steps=12, validate_every=12, max_crop_s=1.0, **published
    )
    values = losses(run(training, tmp_path))
    assert np.mean(values[-3:]) < np.mean(values[:3])


def test_gradient_checkpointing_changes_no_number(
    params_mapping: dict[str, Any], mini_shards: Path, tmp_path: Path
) -> None:
    plain, checkpointed = (
        run(mini(params_mapping, mini_shards, wavlm=True, max_steps=2, max_crop_s=1.0, gradient_checkpointing=on), path)
        for on, path in ((False, tmp_path / "plain"), (True, tmp_path / "checkpointed"))
    )
    assert losses(plain) == pytest.approx(losses(checkpointed), rel=1e-6)


def test_a_batch_larger_than_the_data_is_refused(
    params_mapping: dict[str, Any], mini_shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(PsclapError, match="96 examples, less than one batch of 1000"):
        run(mini(params_mapping, mini_shards, "situational", global_batch_size=1000), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(
    params_mapping: dict[str, Any], mini_shards: Path, tmp_path: Path
) -> None:
    wild = {"max_grad_norm": None, "learning_rate": 1e30, "warmup_steps": 0, "optimizer": "adam"}
    with pytest.raises(PsclapError, match=r"the loss is \w+ at step"):
        run(mini(params_mapping, mini_shards, "combined", **wild), tmp_path)


def test_learning_rate_warms_up_and_decays(params_mapping: dict[str, Any]) -> None:
    config = dataclasses.replace(parse_params(params_mapping).train["combined"], learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(step, 20, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    cosine = [learning_rate(step, 20, config) for step in range(4, 21)]
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[8] == pytest.approx(0.5)
    assert cosine[-1] == pytest.approx(0.0)
    constant = dataclasses.replace(config, schedule="constant", warmup_steps=0)
    assert {learning_rate(step, 20, constant) for step in range(20)} == {1.0}


def test_norms_biases_and_the_logit_scale_do_not_decay(params_mapping: dict[str, Any], mini_shards: Path) -> None:
    training = mini(params_mapping, mini_shards)
    model, _ = build_training_model(training, ShardIndex(mini_shards))
    decayed, kept = build_optimizer(model, training.train).param_groups
    assert decayed["weight_decay"] == training.train.weight_decay > 0
    assert kept["weight_decay"] == 0
    assert any(parameter is model.log_logit_scale for parameter in kept["params"])
    count = len(decayed["params"]) + len(kept["params"])
    assert count == sum(parameter.requires_grad for parameter in model.parameters())


# --- several ranks -------------------------------------------------------------------------------------------


def _rank(rank: int, world_size: int, training: Training, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    trainer = Trainer(training, ShardIndex(training.shards), torch.device("cpu"), NullTracker())
    batches = iter(trainer.loader(Position()))
    with torch.no_grad():
        total = trainer.parallel(next(batches)[1]).total
    batches.close()
    metrics = trainer.validate(0)
    if rank == 0:
        torch.save({"loss": total, "metrics": metrics}, folder / f"{world_size}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_loaders_and_validation_do_not_depend_on_the_number_of_ranks(
    params_mapping: dict[str, Any], mini_shards: Path, tmp_path: Path
) -> None:
    """Real gloo processes; tests/test_exactness.py has the gradients."""
    training = mini(params_mapping, mini_shards, "intrinsic", dropout=0.0)
    results = []
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        mp.spawn(_rank, (world_size, training, folder), nprocs=world_size)
        results.append(torch.load(folder / f"{world_size}.pt", weights_only=True))
    one, two = results
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
    assert two["loss"].item() == pytest.approx(one["loss"].item(), rel=1e-6)


def test_checkpoints_hold_no_pickle(params_mapping: dict[str, Any], mini_shards: Path, tmp_path: Path) -> None:
    run(mini(params_mapping, mini_shards, max_steps=2), tmp_path)
    for file in (tmp_path / "step-2").iterdir():
        assert file.suffix in {".json", ".safetensors"}, file
        (load_file if file.suffix == ".safetensors" else lambda path: json.loads(path.read_text()))(file)
