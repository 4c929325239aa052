"""A lease in the tracking store: one holder at a time, on whatever machines they are.

Each holding is an experiment `NAME-000017`, whose name a store gives out once, even after it was deleted: that is what
makes it a lock. It is active while it is held and deleted when it is given back; its tags say who holds it and
when that holder was last alive. The lease of a holder that died is taken over by making the next number; a holder that
was only slow then sees, before it changes anything, that it has lost it.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Experiment, ViewType
from mlflow.exceptions import MlflowException

from pipelines.tracking import TrackingStore, impatient
from psclap.errors import PsclapError

HEARTBEAT_S = 10.0
PATIENCE_S = 60.0
"""A holder of another machine is taken for dead when its heartbeat has stood still for that long."""

_HOLDER, _HEARTBEAT = "holder", "heartbeat"
_POLL_S = 0.5
_MAX_NAMESAKES = 100
_START_FIELD = 18  # of /proc/PID/stat, behind the state
_TAKEN = "RESOURCE_ALREADY_EXISTS"


class LeaseError(PsclapError):
    """Another process holds the lease, or took it over."""


@dataclass
class Lease:
    """A lease that this process holds."""

    client: MlflowClient
    experiment_id: str
    name: str
    number: int  # how often the lease was given out, with this time
    holder: str
    _over: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises LeaseError where another process has taken the lease over; to be called before what it protects."""
        newest = _newest(self.client, self.name)
        if newest is None or newest.experiment_id != self.experiment_id or newest.lifecycle_stage != "active":
            raise LeaseError(
                f"the lease {self.name} of {self.holder} was taken over, as it gave no sign of life for "
                f"{PATIENCE_S:.0f} s; run it again"
            )

    def beat(self) -> None:
        """Says every few seconds that the holder is alive, until the lease is given back."""
        count = 0
        while not self._over.wait(HEARTBEAT_S):
            count += 1
            with suppress(Exception):  # a store that is away comes back
                self.client.set_experiment_tag(self.experiment_id, _HEARTBEAT, str(count))

    def give_back(self) -> None:
        """Lets the next one have it."""
        self._over.set()
        with suppress(Exception), impatient():  # what cannot be given back is taken over
            self.client.delete_experiment(self.experiment_id)


@contextmanager
def leased(store: TrackingStore, name: str, wait_s: float = 0.0) -> Iterator[Lease]:
    """Holds the lease of a name for the length of a `with` block.

    Waits `wait_s` for a living holder, and `PATIENCE_S` for the sign of life of one that may be dead. Raises LeaseError
    where it is held.
    """
    lease = _acquire(store, name, wait_s)
    thread = threading.Thread(target=lease.beat, name=f"heartbeat of {name}", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        lease.give_back()


def _acquire(store: TrackingStore, name: str, wait_s: float) -> Lease:
    client, holder = store.client(), _this_process()
    deadline = time.monotonic() + wait_s
    watched = _Watched()
    while True:
        newest = _newest(client, name)
        if newest is None or newest.lifecycle_stage == "deleted" or watched.is_dead(newest):
            lease = _take(store, client, name, newest, holder)
            if lease:
                return lease
            time.sleep(_POLL_S)
        elif time.monotonic() > deadline and watched.is_alive(newest):
            raise LeaseError(f"{name} is held by {newest.tags.get(_HOLDER)}; one at a time: try again later")
        else:
            time.sleep(_POLL_S)


def _take(
    store: TrackingStore, client: MlflowClient, name: str, before: Experiment | None, holder: str
) -> Lease | None:
    number = _number(before) + 1 if before else 1
    try:
        experiment_id = client.create_experiment(
            f"{name}-{number:06}", store.artifact_location, tags={_HOLDER: holder, _HEARTBEAT: "0"}
        )
    except MlflowException as error:
        if error.error_code == _TAKEN:  # somebody was quicker
            return None
        raise
    if before and before.lifecycle_stage == "active":
        with suppress(MlflowException):
            client.delete_experiment(before.experiment_id)
    return Lease(client, experiment_id, name, number, holder)


class _Watched:
    """What has been seen of a holder since it was first looked at."""

    def __init__(self) -> None:
        self._last: tuple[str, str | None] | None = None
        self._looked_s = self._still_s = 0.0
        self._moved = False

    def is_dead(self, experiment: Experiment) -> bool:
        """Whether its process is no more, on this machine; or, on another, its heartbeat stands still."""
        known = _process_is_alive(experiment.tags.get(_HOLDER, ""))
        if known is not None:
            self._moved = known
            return not known
        before, self._last = self._last, (experiment.experiment_id, experiment.tags.get(_HEARTBEAT))
        self._moved = before is not None and before != self._last and before[0] == self._last[0]
        now_s = time.monotonic()
        # A store that was away for minutes, here as for the holder, is no silence of the holder's.
        self._still_s = self._still_s + min(now_s - self._looked_s, 2 * _POLL_S) if before == self._last else 0.0
        self._looked_s = now_s
        return self._still_s > PATIENCE_S

    def is_alive(self, experiment: Experiment) -> bool:
        """Whether it has given a sign of life; of `is_dead` this is the opposite only once one of them is known."""
        return self._moved


def _newest(client: MlflowClient, name: str) -> Experiment | None:
    numbered = re.compile(rf"{re.escape(name)}-\d+")
    found = client.search_experiments(
        ViewType.ALL, max_results=_MAX_NAMESAKES, filter_string=f"name LIKE '{name}-%'", order_by=["name DESC"]
    )
    return max((one for one in found if numbered.fullmatch(one.name)), key=_number, default=None)


def _number(experiment: Experiment) -> int:
    return int(experiment.name.rsplit("-", 1)[1])


_PROCESS = re.compile(r"(?P<pid>\d+)@(?P<place>.+) since (?P<start>\d+)")


def _this_process() -> str:
    return f"{os.getpid()}@{_place()} since {_start(os.getpid())}"


def _process_is_alive(holder: str) -> bool | None:
    """Whether the process that holds a lease is alive; None where that cannot be seen from here."""
    match = _PROCESS.fullmatch(holder)
    if not match or match["place"] != _place():
        return None
    return _start(int(match["pid"])) == int(match["start"])


def _start(pid: int) -> int:
    """When a process started, in ticks since boot: tells it from one with the number of a dead one. Of none, 0."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0
    return 0 if state == "Z" else int(fields[_START_FIELD])


def _place() -> str:
    """Where processes see each other: a user on a boot of a machine, in one container of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        container = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return f"{socket.gethostname()}/{uuid.uuid4()}"  # no other process is ever in the same place
    return f"{socket.gethostname()}/{boot}/{container}/{os.getuid()}"
