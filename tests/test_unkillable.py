"""Real processes, killed: what was trained is, to the bit, what it would have been; and on other numbers of ranks.

The processes speak gloo, and start like those of any launcher: rank, world size and the run's folder.
"""

import dataclasses
import json
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_training import at, mini, run

from psclap.config import CheckpointConfig
from psclap.training.checkpoint import read_progress
from psclap.training.spec import Training
from psclap.training.store import CheckpointStore

pytestmark = pytest.mark.slow

Params = dict[str, Any]

_WORKER = """
import json, pickle, sys
from pathlib import Path
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from small_training import Recorder
from psclap.training.loop import train
from psclap.training.signals import UnixSignals
from psclap.training.store import CheckpointStore

folder, rank, world_size, rendezvous = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]

class Said(Recorder):
    def metrics(self, step, metrics):
        if "loss/total" in metrics:
            print(json.dumps([step, metrics["loss/total"]]), flush=True)

torch.set_num_threads(1)
if world_size > 1:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
training = pickle.loads((folder / "training.pickle").read_bytes())
tracker = Said() if rank == 0 else Recorder()
with UnixSignals() as signals:
    is_over = train(training, tracker, CheckpointStore(folder / "store", training.checkpoints), signals=signals)
if dist.is_initialized():
    dist.destroy_process_group()
sys.exit(0 if is_over else 3)
"""


class Workers:
    """The processes of one training; a second `start` on the folder goes on from its store."""

    def __init__(self, training: Training, folder: Path):
        self.folder, self._starts = folder, 0
        folder.mkdir()
        (folder / "training.pickle").write_bytes(pickle.dumps(training))

    def start(self, world_size: int) -> list[subprocess.Popen[str]]:
        self._starts += 1
        rendezvous = self.folder / f"rendezvous-{self._starts}"
        return [self.rank(rank, world_size, rendezvous) for rank in range(world_size)]

    def rank(self, rank: int, world_size: int, rendezvous: Path) -> subprocess.Popen[str]:
        arguments = (Path(__file__).parent, self.folder, rank, world_size, rendezvous)
        command = [sys.executable, "-c", _WORKER, *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, world_size: int, status: int = 0) -> dict[int, float]:
        """Runs to the end; the losses by step."""
        return self.end(self.start(world_size), status)

    def end(self, processes: list[subprocess.Popen[str]], status: int = 0) -> dict[int, float]:
        outputs = [process.communicate(timeout=240) for process in processes]
        assert [process.returncode for process in processes] == [status] * len(processes), outputs
        return dict(json.loads(line) for line in outputs[0][0].splitlines())


def kill_at(process: subprocess.Popen[str], step: int, delay_s: float, everyone: list[subprocess.Popen[str]]) -> None:
    """SIGKILL, `delay_s` after the process tells of a step; the others then fail or hang, and are killed too."""
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)[0] >= step:
            break
    time.sleep(delay_s)
    for victim in everyone:
        victim.send_signal(signal.SIGKILL)
    for victim in everyone:
        victim.communicate()


def small(params_mapping: Params, shards: Path, **changes: Any) -> Training:
    """30 steps over 5 epochs with dropout, class balance, tag loss and moving average; a checkpoint every 3 steps."""
    settings = {"max_steps": 30, "validate_every": 10, "ema_decay": 0.9, **changes}
    return mini(params_mapping, shards, checkpoints=CheckpointConfig(every_steps=3), **settings)


def same_end(one: Path, two: Path, step: int) -> None:
    for name in ("model.safetensors", "trainer.safetensors", "progress.json"):
        assert (at(one, step) / name).read_bytes() == (at(two, step) / name).read_bytes(), name


@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_many_times_it_ends_bit_identical(
    params_mapping: Params, mini_shards: Path, tmp_path: Path, world_size: int
) -> None:
    """SIGKILL at random moments of random steps: while it loads, computes, validates or writes a checkpoint."""
    training = small(params_mapping, mini_shards)
    whole = Workers(training, tmp_path / "whole")
    expected = whole.finish(world_size)
    killed = Workers(training, tmp_path / "killed")
    moments = random.Random(world_size)
    reached = 0
    for _ in range(3):
        processes = killed.start(world_size)
        reached = min(reached + moments.randint(3, 9), 29)
        kill_at(processes[0], reached, moments.random() * 0.3, processes)
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
    workers = Workers(training, tmp_path / "run")
    processes = workers.start(2)
    assert processes[0].stdout is not None
    for _ in range(4):
        processes[0].stdout.readline()
    processes[1].send_signal(signal_number)
    last = max(workers.end(processes, status=3))
    assert read_progress(at(workers.folder / "store", last)).step == last


def test_a_rank_that_stops_for_good_is_noticed_by_the_others(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    """SIGSTOP: the rank is there and does nothing; the other one waits for it in a collective, and ends."""
    training = dataclasses.replace(mini(params_mapping, mini_shards, max_steps=3000), hang_timeout_s=5.0)
    workers = Workers(training, tmp_path / "run")
    waiting, stopped = workers.start(2)
    assert waiting.stdout is not None
    waiting.stdout.readline()
    stopped.send_signal(signal.SIGSTOP)
    _, stacks = waiting.communicate(timeout=120)
    stopped.kill()
    stopped.communicate()
    assert waiting.returncode == 1
    assert "Timeout" in stacks
    assert "loop.py" in stacks


def test_a_rank_that_does_not_see_the_checkpoint_stops_all(
    params_mapping: Params, mini_shards: Path, tmp_path: Path
) -> None:
    """Its folder is its own: to start from step 0 beside ranks that go on would train on two states at once."""
    training = mini(params_mapping, mini_shards, max_steps=4)
    shared = Workers(training, tmp_path / "shared")
    shared.finish(2)
    blind = Workers(training, tmp_path / "blind")
    rendezvous = tmp_path / "rendezvous"
    processes = [shared.rank(0, 2, rendezvous), blind.rank(1, 2, rendezvous)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "not every worker sees the checkpoint of step 4" in err


def test_it_goes_on_with_fewer_or_more_ranks(params_mapping: Params, mini_shards: Path, tmp_path: Path) -> None:
    """The same global batches and, to rounding, the same losses as on one rank throughout."""
    training = small(params_mapping, mini_shards, dropout=0.0, max_steps=60, validate_every=20)
    expected = Workers(training, tmp_path / "one").finish(1)
    elastic = Workers(training, tmp_path / "elastic")
    losses: dict[int, float] = {}
    for world_size, until in ((2, 10), (4, 20), (1, 60)):
        processes = elastic.start(world_size)
        if until < 60:
            kill_at(processes[0], until, 0.0, processes)
        else:
            losses |= elastic.end(processes)
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
