"""What the tracking store says. The library knows none: a package that does names itself as an entry point."""

from __future__ import annotations

import importlib.metadata
import queue
import threading
from collections.abc import Callable
from functools import partial

from psclap.errors import PsclapError
from psclap.status.facts import Tracked

_TRACKERS = "psclap.trackers"


def tracked_facts(runs: int, timeout_s: float) -> Tracked:
    """Asks the tracking store for the last `runs` runs and the rest.

    Raises PsclapError where it does not answer in that time, and where no installed package keeps runs.
    """
    for entry in importlib.metadata.entry_points(group=_TRACKERS):
        return _within(timeout_s, partial(entry.load(), runs))
    raise PsclapError(f"no installed package keeps runs (entry points {_TRACKERS}); install psclap with `make setup`")


def _within(timeout_s: float, ask: Callable[[], Tracked]) -> Tracked:
    """Its answer; whoever hangs is left behind, and ends with the process."""
    answers: queue.Queue[Tracked | BaseException] = queue.Queue()

    def answer() -> None:
        try:
            answers.put(ask())
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=answer, daemon=True).start()
    try:
        found = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise PsclapError(f"the tracking store did not answer within {timeout_s:g} s") from None
    if isinstance(found, BaseException):
        raise found
    return found
