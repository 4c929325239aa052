"""Ranks of one training as processes, which are told what any launcher tells: rank, world size and the run's folder.

Each is a fork of a process that has made the imports already.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from small_training import Recorder

from psclap.training.loop import train
from psclap.training.signals import UnixSignals
from psclap.training.spec import Training
from psclap.training.store import CheckpointStore

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["psclap.training.loop"])

TO_BE_CONTINUED = 3
"""The status of a rank that was asked to leave before the end."""


class Rank:
    """A rank at work; `folder` has the training. What it prints goes to files."""

    def __init__(self, folder: Path, rank: int, world_size: int, rendezvous: Path):
        self._out, self._err = (Path(f"{rendezvous}-{rank}.{name}") for name in ("out", "err"))
        self._out.touch()
        self._process = FORKS.Process(target=_work, args=(folder, rank, world_size, rendezvous, self._out, self._err))
        self._process.start()

    def losses(self) -> Iterator[tuple[int, float]]:
        """(step, loss) of each step, as it is made; those of rank 0 are the whole batch's."""
        line = ""
        with self._out.open() as stream:
            while True:
                is_alive = self._process.is_alive()  # asked first: whatever a dead one has printed is there
                line += stream.readline()
                if line.endswith("\n"):
                    step, loss = json.loads(line)
                    yield step, loss
                    line = ""
                elif is_alive:
                    time.sleep(0.005)
                else:
                    return

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def ends(self, timeout_s: float = 240) -> int | None:
        """Its status, or None where it does not end in time."""
        self._process.join(timeout_s)
        return self._process.exitcode

    @property
    def errors(self) -> str:
        """What it has said of them."""
        return self._err.read_text()


class Ranks:
    """The processes of one training; a second `start` on the folder goes on from its store."""

    def __init__(self, training: Training, folder: Path):
        self.folder, self._starts = folder, 0
        folder.mkdir()
        (folder / "training.pickle").write_bytes(pickle.dumps(training))

    def start(self, world_size: int) -> list[Rank]:
        self._starts += 1
        rendezvous = self.folder / f"rendezvous-{self._starts}"
        return [Rank(self.folder, rank, world_size, rendezvous) for rank in range(world_size)]

    def finish(self, world_size: int) -> dict[int, float]:
        """Runs to the end; the losses by step."""
        return end(self.start(world_size))


def end(ranks: list[Rank], status: int = 0) -> dict[int, float]:
    """Waits until all have ended, with this status; the losses by step."""
    assert [rank.ends() for rank in ranks] == [status] * len(ranks), [rank.errors for rank in ranks]
    return dict(ranks[0].losses())


def kill_at(ranks: list[Rank], step: int, delay_s: float) -> None:
    """SIGKILL to all, `delay_s` after the first tells of a step."""
    for reached, _ in ranks[0].losses():
        if reached >= step:
            break
    time.sleep(delay_s)
    for rank in ranks:
        rank.kill()


class _Said(Recorder):
    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        if "loss/total" in metrics:
            print(json.dumps([step, metrics["loss/total"]]), flush=True)


def _work(folder: Path, rank: int, world_size: int, rendezvous: Path, out: Path, err: Path) -> None:
    for descriptor, path in ((1, out), (2, err)):
        with path.open("ab") as stream:
            os.dup2(stream.fileno(), descriptor)
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    training = pickle.loads((folder / "training.pickle").read_bytes())
    tracker = _Said() if rank == 0 else Recorder()
    with UnixSignals() as signals:
        is_over = train(training, tracker, CheckpointStore(folder / "store", training.checkpoints), signals=signals)
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(0 if is_over else TO_BE_CONTINUED)
