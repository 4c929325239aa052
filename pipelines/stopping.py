"""Stopping a training with nothing lost: Ctrl-C, SIGTERM, or a node of Ray's that is about to be taken away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Protocol

from psclap.training.signals import NoSignals, UnixSignals

ASK_EVERY = 10
"""Steps."""


class Raisable(Protocol):
    """What the driver raises to ask for the end."""

    def raise_(self) -> None:
        """Raises it."""


class OwnFlag(NoSignals):
    """A flag, and the signals of a training that goes on in the driver's own process."""

    def __init__(self) -> None:
        self._raised = threading.Event()

    def raise_(self) -> None:
        self._raised.set()

    def leave(self) -> bool:
        """Whether the driver asked to leave."""
        return self._raised.is_set()


class StopFlag:
    """A flag that the driver raises and a worker sees; it goes to the workers as it is. `actor` is of a `Flag`."""

    def __init__(self, actor: Any):
        self._actor = actor

    def raise_(self) -> None:
        """Raises the flag."""
        self._actor.raise_.remote()

    def watch(self) -> threading.Event:
        """An event that is set as soon as the flag is raised; to look at it costs nothing."""
        import ray

        seen = threading.Event()

        def wait() -> None:
            ray.get(self._actor.wait.remote())
            seen.set()

        threading.Thread(target=wait, daemon=True).start()
        return seen


class Flag:
    """The part of an actor that a `StopFlag` speaks to."""

    def __init__(self) -> None:
        self._raised = asyncio.Event()

    async def raise_(self) -> None:
        self._raised.set()

    async def wait(self) -> None:
        await self._raised.wait()


class RaySignals:
    """A worker's signals: the driver's flag, and Ray's notice that a node of the training goes away.

    Asking Ray is a barrier over the workers of a few milliseconds, so it is done at every ASK_EVERY-th step.
    """

    def __init__(self, flag: StopFlag):
        self._stopped = flag.watch()
        self._steps = 0
        self._deadline_ms: int | None = None

    def leave(self) -> bool:
        """Whether the driver asked to leave."""
        return self._stopped.is_set()

    def save(self) -> bool:
        """Whether a node's end has been announced since the last call."""
        import ray.train

        self._steps += 1
        if self._steps % ASK_EVERY:
            return False
        notice = ray.train.get_preemption_info()
        before, self._deadline_ms = self._deadline_ms, (notice.deadline_ms or 0) if notice else None
        return self._deadline_ms not in (None, before)


def run_until_stopped(work: Callable[[], Any], flag: Raisable, say: Callable[[str], Any]) -> tuple[Any, bool]:
    """(the result of `work`, whether a signal asked to stop before it was done).

    The first Ctrl-C or SIGTERM raises the flag, upon which `work` is to end by itself; the second raises
    KeyboardInterrupt here. Raises what `work` raises. For the main thread.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = work()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    with UnixSignals() as signals:
        thread.start()
        told = False
        while thread.is_alive():
            thread.join(timeout=0.1)
            if signals.leave() and not told:
                told = True
                say("stopping: a checkpoint is being written; Ctrl-C again leaves at once")
                flag.raise_()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"], told
