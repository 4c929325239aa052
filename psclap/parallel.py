"""Work beside other work: over the processes of one machine, in order and without orphans; in a thread."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def available_cpus() -> int:
    """The number of CPU cores this process may run on."""
    return len(os.sched_getaffinity(0))


def process_map(
    function: Callable[[Job], Result], jobs: Iterable[Job], processes: int | None = None, *, chunk: int = 1
) -> Iterator[Result]:
    """Yields `function(job)` for each job, in order; None for `processes` means every available core.

    The first exception of a job is raised here, and jobs not yet begun are dropped, as on Ctrl-C.
    """
    pool = ProcessPoolExecutor(
        processes or available_cpus(),
        mp_context=multiprocessing.get_context("fork"),
        # Ctrl-C reaches every process of the group: the workers leave it to us, or each prints a traceback.
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        yield from pool.map(function, jobs, chunksize=chunk)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def in_background(work: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Runs `work` in a thread for the length of a `with` block; the event tells it to come to its end."""
    done = threading.Event()
    thread = threading.Thread(target=work, args=(done,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class SharedLock:
    """Held by many at a time, or by one alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._sharing = 0
        self._is_alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Beside others, once nobody is alone."""
        with self._condition:
            self._condition.wait_for(lambda: not self._is_alone)
            self._sharing += 1
        try:
            yield
        finally:
            with self._condition:
                self._sharing -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Once nobody else holds it; whoever comes waits."""
        with self._condition:
            self._condition.wait_for(lambda: not self._is_alone and not self._sharing)
            self._is_alone = True
        try:
            yield
        finally:
            with self._condition:
                self._is_alone = False
                self._condition.notify_all()
