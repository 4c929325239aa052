"""Real processes, killed: what was trained is, to the bit, what it would have been; and on other numbers of ranks.

The processes speak gloo.
"""

import dataclasses
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from ranks import TO_BE_CONTINUED, Rank, Ranks, end, kill_at
from small_training import at, mini, run

from psclap.loop_config import CheckpointConfig
from psclap.training.checkpoint import read_progress
from psclap.training.spec import Training
from psclap.training.store import CheckpointStore

pytestmark = pytest.mark.slow

Params = dict[str, Any]


def small(params_mapping: Params, shards: Path, **changes: Any) -> Training:
    """30 steps over 5 epochs with dropout, class balance, tag loss and moving average; a checkpoint every 3 steps."""
    settings = {"max_steps": 30, "validate_every": 10, "ema_decay": 0.9, **changes}
    return mini(params_mapping, shards, checkpoints=CheckpointConfig(every_steps=3), **settings)


def same_end(one: Path, two: Path, step: int) -> None:
    for name in ("model.safetensors", "trainer.safetensors", "progress.json"):
        assert (at(one, step) / name).read_bytes() == (at(two, step) / name).read_bytes(), name


def test_killed_many_times_it_ends_bit_identical(params_mapping: Params, mini_shards: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments of random steps: while it loads, computes, validates or writes a checkpoint."""
    training, world_size, kills = small(params_mapping, mini_shards), 2, 2
    whole = Ranks(training, tmp_path / "whole")
    expected = whole.finish(world_size)
    killed = Ranks(training, tmp_path / "killed")
    moments = random.Random(world_size)
    reached = 0
    for _ in range(kills):
        reached = min(reached + moments.randint(3, 9), 29)
        kill_at(killed.start(world_size), reached, moments.random() * 0.3)
    newest, _ = CheckpointStore(killed.folder / "store").newest()
    assert newest is not None
    last = killed.finish(world_size)
    assert min(last) == newest.step + 1  # it went on, and did not start again
    assert last.items() <= expected.items()
    same_end(whole.folder / "store", killed.folder / "store", 30)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_asked_to_end_it_writes_a_checkpoint_first(
    params_mapping: Params, mini_shards: Path, tmp_path: Path, signal_number: int
) -> None:
    """One of two ranks gets the signal; both leave after the same step."""
    training = mini(params_mapping, mini_shards, max_steps=3000, validate_every=3000)
    both = Ranks(training, tmp_path / "run")
    first, second = both.start(2)
    for _ in zip(range(4), first.losses(), strict=False):
        pass
    second.send_signal(signal_number)
    last = max(end([first, second], TO_BE_CONTINUED))
    assert read_progress(at(both.folder / "store", last)).step == last


def test_a_rank_that_stops_for_good_is_noticed_by_the_others(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    """SIGSTOP: the rank is there and does nothing; the other one waits for it in a collective, and ends."""
    training = dataclasses.replace(mini(params_mapping, mini_shards, max_steps=3000), hang_timeout_s=5.0)
    waiting, stopped = Ranks(training, tmp_path / "run").start(2)
    next(waiting.losses())
    stopped.send_signal(signal.SIGSTOP)
    status = waiting.ends()
    stopped.kill()
    assert status == 1
    assert "Timeout" in waiting.errors
    assert "loop.py" in waiting.errors


def test_a_rank_that_does_not_see_the_checkpoint_stops_all(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    """Its folder is its own: to start from step 0 beside ranks that go on would train on two states at once."""
    training = mini(params_mapping, mini_shards, max_steps=4)
    shared = Ranks(training, tmp_path / "shared")
    shared.finish(2)
    blind = Ranks(training, tmp_path / "blind")
    rendezvous = tmp_path / "rendezvous"
    for rank in [Rank(shared.folder, 0, 2, rendezvous), Rank(blind.folder, 1, 2, rendezvous)]:
        assert rank.ends() == 1
        assert "not every worker sees the checkpoint of step 4" in rank.errors


def test_it_goes_on_with_fewer_or_more_ranks(params_mapping: Params, mini_shards: Path, tmp_path: Path) -> None:
    """The same global batches and, to rounding, the same losses as on one rank throughout."""
    training = small(params_mapping, mini_shards, dropout=0.0, max_steps=60, validate_every=20)
    expected = Ranks(training, tmp_path / "one").finish(1)
    elastic = Ranks(training, tmp_path / "elastic")
    losses: dict[int, float] = {}
    for world_size, until in ((1, 10), (3, 20), (2, 60)):
        ranks = elastic.start(world_size)
        if until < 60:
            kill_at(ranks, until, 0.0)
        else:
            losses |= end(ranks)
    assert {59, 60} <= losses.keys() < expected.keys()
    assert losses == pytest.approx({step: expected[step] for step in losses}, rel=1e-3)
    ends = [read_progress(at(folder / "store", 60)) for folder in (elastic.folder, tmp_path / "one")]
    assert ends[0].position == ends[1].position
    assert ends[0].metrics == pytest.approx(ends[1].metrics, rel=1e-2)


def test_checkpoints_between_validations_change_nothing(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    often = mini(
        params_mapping, mini_shards, max_steps=4, validate_every=4, checkpoints=CheckpointConfig(every_steps=1)
    )
    rarely = mini(params_mapping, mini_shards, max_steps=4, validate_every=4)
    run(often, tmp_path / "often")
    run(rarely, tmp_path / "rarely")
    same_end(tmp_path / "often", tmp_path / "rarely", 4)
