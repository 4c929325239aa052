"""What the workers of a training say is kept by the driver: no node needs to see another's disk.

An actor on the driver's node, without a core of its own, writes what they say into the driver's folder. Each call
returns when that is on the disk, so what a worker said before a checkpoint is safe before the checkpoint is. Ray
starts the actor anew where its process dies, and it finds in the journal what it had written. Where its node is lost
the driver is lost too, and with it the training, which goes on when it is run again.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.cluster import on_every_node, on_this_node
from pipelines.stopping import Flag, StopFlag
from psclap.shards.cache import cache_folder
from psclap.training.journal import Journal, JournalTracker
from psclap.training.journal_copy import JournalCopy


class Keeper:
    """The driver's end of a training; it goes to the workers as it is. Needs a Ray session.

    `copy` is brought up to date before each checkpoint; `hangs` is the driver's folder for what processes that hung
    leave; `flag` asks the workers to stop.
    """

    def __init__(self, journal: Journal, copy: JournalCopy | None, hangs: Path, hang_timeout_s: float | None):
        import ray

        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, **on_this_node()}
        self._actor: Any = ray.remote(**options)(_Actor).remote(journal, copy, hangs, hang_timeout_s)
        self.flag = StopFlag(self._actor)

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the actor and waits for it; raises what it raises."""
        import ray

        try:
            return ray.get(getattr(self._actor, method).remote(*arguments))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error

    def failure(self) -> str | None:
        """The sentence with which a worker asked for a user, if one did."""
        return self.call("failure")

    def fail(self, sentence: str) -> None:
        """Says that a user is needed, and what for."""
        self.call("fail", sentence)

    def report_hangs(self, name: str) -> None:
        """Hands over what processes of this node that hung have left."""
        for report, text in _taken(hangs_folder(name)):
            self.call("hung", report, text)

    def collect_hangs(self, name: str) -> None:
        """Hands over what processes that hung have left, on whatever node."""
        on_every_node(self.report_hangs, name)


class KeptTracker:
    """A Tracker whose numbers stand in the driver's journal, once, when a call returns. See `JournalTracker`."""

    def __init__(self, keeper: Keeper):
        self._keeper = keeper

    def params(self, params: Mapping[str, Any]) -> None:
        self._keeper.call("track", "params", params)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self._keeper.call("track", "metrics", step, metrics)

    def tags(self, tags: Mapping[str, str]) -> None:
        self._keeper.call("track", "tags", tags)

    def note(self, text: str) -> None:
        self._keeper.call("track", "note", text)

    def secure(self) -> None:
        self._keeper.call("track", "secure")

    def system(self, metrics: Mapping[str, float]) -> None:
        """A sample of how the machine of this process does."""
        self._keeper.call("track", "system", metrics)


class _Actor(Flag):
    """Its methods run one after the other, in the event loop that `Flag.wait` needs."""

    def __init__(self, journal: Journal, copy: JournalCopy | None, hangs: Path, hang_timeout_s: float | None):
        super().__init__()
        self._tracker = JournalTracker(journal, copy.update if copy else None)
        self._hangs, self._hang_timeout_s = hangs, hang_timeout_s
        self._failure: str | None = None

    def track(self, method: str, *arguments: Any) -> None:
        getattr(self._tracker, method)(*arguments)

    def fail(self, sentence: str) -> None:
        self._failure = self._failure or sentence

    def failure(self) -> str | None:
        return self._failure

    def hung(self, report: str, text: str) -> None:
        self._hangs.mkdir(parents=True, exist_ok=True)
        path = self._hangs / report
        path.write_text(text)
        self._tracker.note(f"a worker made no progress for {self._hang_timeout_s:g} s; {path} says where it was")


def hangs_folder(name: str) -> Path:
    """Where processes of this machine say where they hung, until the driver has it."""
    return cache_folder() / "hangs" / name


def new_hang_report(name: str, rank: int) -> Path:
    """Where this process is to say where it hung."""
    hangs_folder(name).mkdir(parents=True, exist_ok=True)
    return hangs_folder(name) / f"{platform.node()}-rank-{rank}-{time.time_ns()}-{os.getpid()}.txt"


def _taken(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and texts of the reports of this machine's processes that are no more, which go with it."""
    for report in folder.glob(f"{platform.node()}-rank-*.txt"):
        if not Path(f"/proc/{report.stem.rsplit('-', 1)[1]}").exists():
            text = report.read_text()
            if text:
                yield report.name, text
            report.unlink(missing_ok=True)
