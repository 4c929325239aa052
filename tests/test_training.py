"""The loop in one plain process: what each option does, exact resume, and what is refused."""

import dataclasses
import json
import math
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARDING, shard
from safetensors.torch import load_file
from small_training import Recorder, at, losses, mini, run

from psclap.config import parse_params
from psclap.embedding import Embedder
from psclap.errors import CheckpointError, PsclapError
from psclap.loader import Position
from psclap.loop_config import CheckpointConfig
from psclap.schema import Utterance
from psclap.shards.index import ShardIndex
from psclap.training.checkpoint import read_progress
from psclap.training.loop import Trainer, check_training
from psclap.training.optim import build_optimizer, learning_rate
from psclap.training.signals import NoSignals
from psclap.training.spec import Training
from psclap.training.step import Stepper, Taken
from psclap.training.store import CheckpointStore
from psclap.training.task import ContrastiveTask
from psclap.training.validation import RetrievalValidation
from psclap.training.watchdog import Watchdog

Params = dict[str, Any]


def trainer_of(training: Training, tracker: Recorder | None = None) -> Trainer:
    index = ShardIndex(training.shards)
    return Trainer(training, index, torch.device("cpu"), tracker or Recorder(), Watchdog(None))


def batches_of(trainer: Trainer, count: int) -> list[Any]:
    batches = iter(trainer.loader())
    taken = [next(batches)[1] for _ in range(count)]
    batches.close()  # type: ignore[attr-defined]
    return taken


def same_files(one: Path, two: Path) -> None:
    assert {file.name for file in one.iterdir()} == {file.name for file in two.iterdir()}
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name


# --- a function of its inputs, and resumed as if never interrupted -----------------------------------------------


def test_a_run_is_a_function_of_its_inputs(params_mapping: Params, mini_shards: Path, tmp_path: Path) -> None:
    training = mini(params_mapping, mini_shards)
    one, two = run(training, tmp_path / "a"), run(training, tmp_path / "b")
    assert losses(one) == losses(two)
    same_files(at(tmp_path / "a", 6), at(tmp_path / "b", 6))


@pytest.mark.parametrize("ema_decay", [None, 0.9], ids=["plain", "ema"])
@pytest.mark.parametrize("stopped_at", [2, 3, 4])
def test_resume_ends_bit_identical(
    params_mapping: Params, mini_shards: Path, tmp_path: Path, stopped_at: int, ema_decay: float | None
) -> None:
    """The run crosses an epoch (6 steps of 16 in 96 clips), has dropout, and tags drawn afresh each step.

    The checkpoint of step 3 is one between validations.
    """
    checkpoints = CheckpointConfig(every_steps=3)
    training = mini(params_mapping, mini_shards, max_steps=8, ema_decay=ema_decay, checkpoints=checkpoints)
    whole = run(training, tmp_path / "whole")
    resumed = run(training, tmp_path / "resumed", at(tmp_path / "whole", stopped_at))
    assert losses(resumed) == losses(whole)[stopped_at:]
    same_files(at(tmp_path / "whole", 8), at(tmp_path / "resumed", 8))
    assert resumed.notes == [f"going on from step {stopped_at} of 8"]


def test_resuming_a_finished_run_does_nothing(params_mapping: Params, mini_shards: Path, tmp_path: Path) -> None:
    training = mini(params_mapping, mini_shards, max_steps=2)
    run(training, tmp_path / "a")
    assert run(training, tmp_path / "b", at(tmp_path / "a", 2)).logged == []


_OUTLIVES = """
import pickle, sys, time
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from small_training import Recorder
import torch
from psclap.training import loop
from psclap.training.store import CheckpointStore

class Slow(Recorder):
    def metrics(self, step, metrics):
        time.sleep(0.25)

training = pickle.loads((Path(sys.argv[2]) / "training.pickle").read_bytes())
warm = replace(training, recipe=replace(training.recipe, train=replace(training.train, max_steps=1)))
loop.train(warm, Recorder(), CheckpointStore(sys.argv[2] + "/warm"))
start, timeout_s = time.monotonic(), 12.0
assert loop.train(replace(training, hang_timeout_s=timeout_s), Slow(), CheckpointStore(sys.argv[2] + "/store"))
print(time.monotonic() - start, timeout_s)
"""


class AskAt(NoSignals):
    """Asks at a step, counted from 1."""

    def __init__(self, leave: int = 0, save: int = 0):
        self._leave, self._save, self._steps = leave, save, 0

    def leave(self) -> bool:
        self._steps += 1
        return self._steps == self._leave

    def save(self) -> bool:
        return self._steps == self._save


def test_who_asks_to_leave_gets_a_checkpoint_and_goes_on_from_it(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    training = mini(params_mapping, mini_shards, validate_every=6)
    whole = run(training, tmp_path / "whole")
    left = run(training, tmp_path / "left", signals=AskAt(leave=3))
    assert losses(left) == losses(whole)[:3]
    assert sorted(path.name for path in (tmp_path / "left").iterdir()) == [at(tmp_path, 3).name]
    went_on = run(training, tmp_path / "left")
    assert losses(went_on) == losses(whole)[3:]
    same_files(at(tmp_path / "whole", 6), at(tmp_path / "left", 6))


def test_who_asks_to_save_gets_a_checkpoint_without_a_stop(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    training = mini(params_mapping, mini_shards, validate_every=6)
    assert len(losses(run(training, tmp_path, signals=AskAt(save=2)))) == 6
    assert read_progress(at(tmp_path, 2)).metrics == {}


def test_a_run_that_hangs_nowhere_outlives_its_timeout(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    """A step, and a clip of a validation, is a sign of life."""
    (tmp_path / "training.pickle").write_bytes(pickle.dumps(mini(params_mapping, mini_shards, max_steps=60)))
    command = [sys.executable, "-c", _OUTLIVES, str(Path(__file__).parent), str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert process.returncode == 0, process.stderr
    lasted_s, timeout_s = map(float, process.stdout.split())
    assert lasted_s > timeout_s


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    training = mini(params_mapping, mini_shards)
    run(training, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    weights = at(tmp_path / "damaged", 6) / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-10] ^= 1
    weights.write_bytes(damaged)
    (at(tmp_path / "damaged", 4) / "trainer.safetensors").write_bytes(b"cut off")
    tracker = run(training, tmp_path / "damaged")
    assert ["step-00000006 is damaged" in note for note in tracker.notes] == [True, False, False]
    assert tracker.notes[-1] == "going on from step 2 of 6"
    assert not list((tmp_path / "damaged").glob(".*"))
    same_files(at(tmp_path / "whole", 6), at(tmp_path / "damaged", 6))


def test_a_checkpoint_of_another_training_is_refused(params_mapping: Params, mini_shards: Path, tmp_path: Path) -> None:
    run(mini(params_mapping, mini_shards, max_steps=2), tmp_path)
    with pytest.raises(CheckpointError, match="another configuration"):
        run(mini(params_mapping, mini_shards, max_steps=2, learning_rate=0.5), tmp_path)
    (at(tmp_path, 2) / "progress.json").unlink()
    with pytest.raises(CheckpointError, match=r"progress\.json"):
        read_progress(at(tmp_path, 2))


def test_checkpoints_hold_no_pickle(params_mapping: Params, mini_shards: Path, tmp_path: Path) -> None:
    run(mini(params_mapping, mini_shards, max_steps=2, ema_decay=0.9), tmp_path)
    for file in at(tmp_path, 2).iterdir():
        assert file.suffix in {".json", ".safetensors", ".py"}, file
        if file.suffix != ".py":
            (load_file if file.suffix == ".safetensors" else lambda path: json.loads(path.read_text()))(file)


# --- what the options do -----------------------------------------------------------------------------------------


def test_a_run_of_epochs_sees_every_clip_in_each(params_mapping: Params, mini_shards: Path, tmp_path: Path) -> None:
    training = mini(params_mapping, mini_shards, "situational", max_steps=None, max_epochs=2, validate_every=100)
    run(training, tmp_path)
    assert read_progress(at(tmp_path, 12)).position == Position(epoch=2, step=0)


def test_training_learns(params_mapping: Params, mini_shards: Path, tmp_path: Path) -> None:
    training = mini(params_mapping, mini_shards, "combined", max_steps=60, warmup_steps=5, validate_every=60)
    values = losses(run(training, tmp_path))
    assert np.mean(values[-5:]) < np.mean(values[:5]) - 0.2


def test_the_golden_loss_curve(params_mapping: Params, mini_shards: Path, tmp_path: Path) -> None:
    """The miniature configuration's losses, as they were when they were last meant to change.

    `python tests/golden.py` writes them anew. Machines differ in the last digits of a float; a step amplifies that.
    """
    golden = json.loads((Path(__file__).parent / "golden_losses.json").read_text())
    for variant, expected in golden.items():
        assert losses(run(mini(params_mapping, mini_shards, variant), tmp_path / variant)) == pytest.approx(
            expected, rel=1e-3
        )


def test_a_tiny_wavlm_trains_with_the_published_options(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    published = {"optimizer": "adam", "schedule": "constant", "warmup_steps": 0, "max_grad_norm": None}
    published |= {"weight_decay": 0.0, "duplicate_captions": "negatives", "gradient_checkpointing": True}
    training = mini(
        params_mapping, mini_shards, wavlm=True, max_steps=12, validate_every=12, max_crop_s=1.0, **published
    )
    values = losses(run(training, tmp_path))
    assert np.mean(values[-3:]) < np.mean(values[:3])


@pytest.mark.parametrize(
    ("compute", "closeness"),
    [({"gradient_checkpointing": True}, 1e-6), ({"micro_batch_size": 5}, 1e-5), ({"precision": "bf16"}, 2e-2)],
    ids=["checkpointing", "micro-batches", "bf16"],
)
def test_how_a_step_is_computed_changes_what_it_computes_by_rounding_only(
    params_mapping: Params, mini_shards: Path, tmp_path: Path, compute: dict[str, Any], closeness: float
) -> None:
    base = {"wavlm": True, "max_steps": 3, "validate_every": 3, "max_crop_s": 1.0, "dropout": 0.0}
    plain = losses(run(mini(params_mapping, mini_shards, **base), tmp_path / "plain"))
    other = losses(run(mini(params_mapping, mini_shards, **base, **compute), tmp_path / "other"))
    assert other == pytest.approx(plain, rel=closeness)
    if compute.get("precision") == "bf16":
        assert other != plain


def test_with_gradient_checkpointing_layers_are_computed_again(params_mapping: Params, mini_shards: Path) -> None:
    passes = {}
    for on in (False, True):
        trainer = trainer_of(mini(params_mapping, mini_shards, wavlm=True, max_crop_s=1.0, gradient_checkpointing=on))
        calls: list[Any] = []
        for layer in trainer.task.model.audio_model.encoder.layers:
            layer.attention.register_forward_pre_hook(lambda *inputs, calls=calls: calls.append(1))
        trainer.stepper.step(0, batches_of(trainer, 1)[0])
        passes[on] = len(calls)
    assert passes == {False: 2, True: 4}


@pytest.mark.soak  # the compiler takes 40 s
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_computes_the_same(params_mapping: Params, mini_shards: Path) -> None:
    params_mapping["model"]["speech"]["config"]["num_layers"] = 1
    plain, compiled = (
        trainer_of(mini(params_mapping, mini_shards, "situational", dropout=0.0, compile=on)) for on in (False, True)
    )
    (batch,) = batches_of(plain, 1)
    expected, values = (trainer.stepper.step(0, batch).values for trainer in (plain, compiled))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for name, value in expected.items():
        assert values[name].item() == pytest.approx(value.item(), rel=1e-4), name
    assert compiled.task.model.state_dict().keys() == plain.task.model.state_dict().keys()


def test_the_gradient_is_clipped_to_the_norm(params_mapping: Params, mini_shards: Path) -> None:
    trainer = trainer_of(mini(params_mapping, mini_shards, max_grad_norm=1e-3))
    values = trainer.stepper.step(0, batches_of(trainer, 1)[0]).values
    norm = torch.stack(
        [parameter.grad.norm() for parameter in trainer.stepper.trained if parameter.grad is not None]
    ).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)
    assert values["grad_norm"].item() > 1e-2  # what is logged is the norm before


def test_the_logit_scale_stays_in_range_at_every_step(params_mapping: Params, mini_shards: Path) -> None:
    trainer = trainer_of(mini(params_mapping, mini_shards, learning_rate=10.0, warmup_steps=0, max_grad_norm=None))
    for step, batch in enumerate(batches_of(trainer, 4)):
        trainer.stepper.step(step, batch)
        assert 1.0 <= trainer.task.model.logit_scale.item() <= 100.0 + 1e-4


def test_frozen_weights_keep_their_values_and_the_others_do_not(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    frozen = ("text_model", "audio_model.blocks.0.conv.weight")
    training = mini(params_mapping, mini_shards, "situational", freeze=frozen, max_steps=2)
    before = training.recipe.build_model(ShardIndex(mini_shards), training.seed)[0].state_dict()
    run(training, tmp_path)
    after = load_file(at(tmp_path, 2) / "model.safetensors")
    kept = {name for name in after if torch.equal(before[name], after[name])}
    assert {name for name in after if f"{name}.".startswith(tuple(f"{name}." for name in frozen))} <= kept
    assert kept.isdisjoint({"audio_model.blocks.1.conv.weight", "text_projection.linear1.weight", "log_logit_scale"})


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("audio_modle",), "the model has no 'audio_modle'; it has audio_model"),
        (("text",), "the model has no 'text'"),
        (
            ("audio_model", "text_model", "audio_projection", "text_projection", "log_logit_scale"),
            "leaves nothing to train",
        ),
    ],
)
def test_a_name_that_cannot_be_frozen_is_refused(
    params_mapping: Params, mini_shards: Path, names: tuple[str, ...], said: str
) -> None:
    with pytest.raises(PsclapError, match=said):
        trainer_of(mini(params_mapping, mini_shards, "situational", freeze=names))


def test_the_moving_average_is_the_formula_and_is_what_is_kept(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    training = mini(params_mapping, mini_shards, ema_decay=0.2, max_steps=3, validate_every=3)
    trainer = trainer_of(training)
    name = "audio_projection.linear1.weight"
    weight = dict(trainer.task.model.named_parameters())[name]
    expected = weight.detach().clone()
    for step, batch in enumerate(batches_of(trainer, 3)):
        trainer.stepper.step(step, batch)
        decay = min(0.2, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
    tracker = run(training, tmp_path)
    kept = load_file(at(tmp_path, 3) / "model.safetensors")[name]
    assert torch.allclose(kept, expected, atol=1e-6)
    assert not torch.allclose(kept, weight, atol=1e-6)
    embedder = Embedder(at(tmp_path, 3))
    task = ContrastiveTask(embedder.model, embedder.processor, training.train, ())
    again = RetrievalValidation(ShardIndex(mini_shards), training.train).metrics(task, lambda: None)
    assert tracker.logged[-1][1] == pytest.approx(again)


def test_the_optimiser_is_as_configured(params_mapping: Params, mini_shards: Path) -> None:
    training = mini(params_mapping, mini_shards, adam_betas=(0.8, 0.95))
    model, _ = training.recipe.build_model(ShardIndex(mini_shards), training.seed)
    optimizer = build_optimizer(model, training.train)
    assert optimizer.defaults["betas"] == (0.8, 0.95)
    assert type(optimizer) is torch.optim.AdamW
    adam = mini(params_mapping, mini_shards, optimizer="adam")
    assert type(build_optimizer(model, adam.train)) is torch.optim.Adam
    decayed, kept = optimizer.param_groups
    assert decayed["weight_decay"] == training.train.weight_decay > 0
    assert kept["weight_decay"] == 0
    assert any(parameter is model.log_logit_scale for parameter in kept["params"])
    count = len(decayed["params"]) + len(kept["params"])
    assert count == sum(parameter.requires_grad for parameter in model.parameters())


def test_learning_rate_warms_up_and_decays(params_mapping: Params) -> None:
    config = dataclasses.replace(parse_params(params_mapping).train["combined"], learning_rate=1.0, warmup_steps=4)
    assert [learning_rate(step, 20, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    cosine = [learning_rate(step, 20, config) for step in range(4, 21)]
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[8] == pytest.approx(0.5)
    assert cosine[-1] == pytest.approx(0.0)
    constant = dataclasses.replace(config, schedule="constant", warmup_steps=0)
    assert {learning_rate(step, 20, constant) for step in range(20)} == {1.0}
    # Vaswani et al. 2017, section 5.3: d^-0.5 min(step^-0.5, step warmup^-1.5), scaled to a peak of learning_rate.
    transformer = dataclasses.replace(config, schedule="inverse_sqrt")
    published = [min(step**-0.5, step * 4**-1.5) * 4**0.5 for step in range(1, 21)]
    assert [learning_rate(step, 20, transformer) for step in range(20)] == pytest.approx(published)


# --- what is seen, and what is chosen ----------------------------------------------------------------------------


def test_what_is_logged(params_mapping: Params, mini_shards: Path, tmp_path: Path) -> None:
    tracker = run(mini(params_mapping, mini_shards, max_steps=2, validate_every=2), tmp_path)
    (_, first), (_, second), (step, validation) = tracker.logged
    assert step == 2
    assert first.keys() == second.keys()
    assert {"lr", "logit_scale", "grad_norm", "loss/total", "loss/contrastive", "loss/tags"} < first.keys()
    assert {"speed/clips_per_s", "speed/audio_s_per_s", "speed/data_wait_share", "speed/eta_s"} < first.keys()
    genders = first["batch_share/male"] + first["batch_share/female"]
    assert genders == pytest.approx(1.0)
    # 16 clips of the demo corpus, cropped to 2.5 s at most.
    assert 0.5 < first["speed/audio_s_per_s"] / first["speed/clips_per_s"] <= 2.5
    assert {"val/MRR", "val/R@1", "val/text_to_audio/R@10", "val/UAR", "val/UAR/gender"} < validation.keys()
    assert all(math.isfinite(value) for value in validation.values())


def test_the_best_checkpoint_is_kept_by_the_named_metric(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    training = mini(params_mapping, mini_shards, best_metric="val/UAR", max_steps=10)
    tracker = run(training, tmp_path)
    scores = {step: metrics["val/UAR"] for step, metrics in tracker.logged if "val/UAR" in metrics}
    best = CheckpointStore(tmp_path).best()
    assert best.score == max(scores.values())
    assert best.step == max(step for step, score in scores.items() if score == best.score)
    assert read_progress(at(tmp_path, 10)).best == best.score


def test_without_a_better_validation_patience_ends_the_training(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    still = {"learning_rate": 1e-12, "warmup_steps": 0, "max_steps": 100, "validate_every": 1, "patience": 2}
    training = mini(params_mapping, mini_shards, **still)
    tracker = run(training, tmp_path)
    assert len(losses(tracker)) == 3  # the first is the best, two are no better
    assert tracker.notes == ["no better val/MRR in 2 validations: the end"]
    assert read_progress(at(tmp_path, 3)).validations_since_best == 2
    assert losses(run(training, tmp_path)) == []


def test_a_best_metric_that_val_cannot_give_is_refused(
    params_mapping: Params, mini_corpus: tuple[Path, list[Utterance]], tmp_path: Path
) -> None:
    untagged = [dataclasses.replace(u, intrinsic_tags=[], situational_tags=[]) for u in mini_corpus[1]]
    shard(untagged, tmp_path / "shards", SHARDING)
    training = mini(params_mapping, tmp_path / "shards", "situational", best_metric="val/UAR")
    with pytest.raises(PsclapError, match="carry no two tags of an attribute"):
        check_training(training, training.open_index(), workers=1)
    without = mini(params_mapping, tmp_path / "shards", "situational", max_steps=2)
    assert "val/UAR" not in run(without, tmp_path / "run").logged[-1][1]


# --- what is not finite ------------------------------------------------------------------------------------------


def poisoned(batch: Any, row: int) -> Any:
    """The batch with a clip that embeds to NaN."""
    values = batch.audio.clone()
    values[row] = math.nan
    return dataclasses.replace(batch, audio=values)


def test_a_step_that_is_not_finite_changes_nothing(params_mapping: Params, mini_shards: Path) -> None:
    trainer = trainer_of(mini(params_mapping, mini_shards, ema_decay=0.5))
    first, second = batches_of(trainer, 2)
    stepper = trainer.stepper
    assert stepper.average is not None
    stepper.step(0, first)
    averages = {name: average.clone() for name, average in stepper.average.weights.items()}
    before = {name: tensor.clone() for name, tensor in trainer.task.model.state_dict().items()}
    moments = [entry["exp_avg"].clone() for entry in stepper.optimizer.state.values()]
    skipped = stepper.step(1, poisoned(second, 5))
    assert not skipped.is_finite
    assert (~skipped.clips_are_finite).nonzero().flatten().tolist() == [5]
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.task.model.state_dict().items())
    assert all(torch.equal(averages[name], average) for name, average in stepper.average.weights.items())
    for moment, entry in zip(moments, stepper.optimizer.state.values(), strict=True):
        assert torch.equal(moment, entry["exp_avg"])
        assert entry["step"] == 1
    taken = stepper.step(1, second)
    assert taken.is_finite
    assert taken.values["loss/total"].isfinite()


class Poisoning(Stepper):
    """Some of its batches have a clip that embeds to NaN."""

    poisoned_steps: tuple[int, ...]

    def step(self, step: int, batch: Any) -> Taken:
        return super().step(step, poisoned(batch, 3) if step in self.poisoned_steps else batch)


def poisoning(training: Training, tracker: Recorder, folder: Path, steps: tuple[int, ...] = (1, 2)) -> bool:
    trainer = trainer_of(training, tracker)
    trainer.stepper.__class__ = Poisoning
    trainer.stepper.poisoned_steps = steps  # type: ignore[attr-defined]
    trainer.resume(CheckpointStore(folder))
    return trainer.run(CheckpointStore(folder), NoSignals())


def test_steps_that_are_not_finite_are_skipped_as_often_as_allowed(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    training = mini(params_mapping, mini_shards, max_skipped_steps=2, log_every=3)
    tracker = Recorder()
    trainer = trainer_of(training)
    plan = trainer.stream.plan(0)
    keys = ShardIndex(mini_shards).column("key").to_pylist()
    poisoned_keys = [keys[trainer.stream.rows[plan.examples(step)[3]]] for step in (1, 2)]
    assert poisoning(training, tracker, tmp_path)
    for step, (key, note) in enumerate(zip(poisoned_keys, tracker.notes, strict=True), start=2):
        assert note == (
            f"the embeddings are not finite at step {step} (batch {step - 1} of epoch 0) of the clips {key}; "
            "it was skipped"
        )
    assert read_progress(at(tmp_path, 6)).skipped_steps == 2
    shutil.rmtree(at(tmp_path, 6))
    with pytest.raises(PsclapError, match="max_skipped_steps 2"):  # two were skipped before it went on from step 4
        poisoning(training, Recorder(), tmp_path, steps=(4,))


def test_more_of_them_than_allowed_stop_the_run_and_say_where(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    training = mini(params_mapping, mini_shards, max_skipped_steps=1, log_every=3, validate_every=3)
    with pytest.raises(PsclapError, match=r"not finite at step 3 \(batch 2 of epoch 0\) of the clips demo-train-\d+;"):
        poisoning(training, Recorder(), tmp_path)
    assert not list(tmp_path.iterdir())  # no checkpoint was written after it


def test_weights_that_diverge_stop_the_run(params_mapping: Params, mini_shards: Path, tmp_path: Path) -> None:
    wild = {"max_grad_norm": None, "learning_rate": 1e30, "warmup_steps": 0, "optimizer": "adam"}
    with pytest.raises(PsclapError, match=r"is finite at step \d+ .* the weights diverged; it was not taken"):
        run(mini(params_mapping, mini_shards, "combined", **wild), tmp_path)


def test_a_batch_larger_than_the_data_is_refused(params_mapping: Params, mini_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(PsclapError, match="96 examples, less than one batch of 1000"):
        run(mini(params_mapping, mini_shards, "situational", global_batch_size=1000), tmp_path)


# --- a process that hangs ----------------------------------------------------------------------------------------

_HANGS = """
import sys, threading
from pathlib import Path
from psclap.training.watchdog import Watchdog

def waits_for_ever():
    threading.Event().wait()

with Watchdog(1.0, Path(sys.argv[1])) as watchdog:
    for _ in range(5):
        threading.Event().wait(0.3)  # longer than the timeout in all, with signs of life
        watchdog.alive()
    print("alive", flush=True)
    waits_for_ever()
"""


def test_a_process_that_hangs_is_ended_and_leaves_its_stacks(tmp_path: Path) -> None:
    report = tmp_path / "hang.txt"
    process = subprocess.run(
        [sys.executable, "-c", _HANGS, report], capture_output=True, text=True, timeout=60, check=False
    )
    assert process.stdout == "alive\n", process.stderr
    assert process.returncode == 1
    assert "waits_for_ever" in report.read_text()
    with Watchdog(60.0, report):
        pass
    assert "waits_for_ever" in report.read_text()


def test_the_report_of_a_process_that_did_not_hang_is_gone(tmp_path: Path) -> None:
    with Watchdog(60.0, tmp_path / "hang.txt"):
        pass
    assert not list(tmp_path.iterdir())
