"""Connects to the Ray cluster that RAY_ADDRESS names, or starts one on this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every worker's line twice
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "token",  # the default; said, it is not warned about
}


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the length of a `with` block; a session that is already there is used and left alone."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray  # after the environment, which Ray reads when it is imported

    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level="WARNING", log_to_driver=False)
    else:
        ray.init(include_dashboard=False, logging_level="WARNING", log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def console() -> Iterator[Callable[[str], None]]:
    """Yields a function that prints a line here, from whichever worker calls it.

    Ray's own forwarding of the workers' output is off: it mixes in the messages of its inner parts.
    """
    from ray.util.queue import Queue

    lines = Queue(actor_options={"num_cpus": 0})

    def forward() -> None:
        while (line := lines.get()) is not None:
            print(line, flush=True)

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield lines.put
    finally:
        lines.put(None)
        thread.join(timeout=10)
        lines.shutdown()


def num_cpus() -> int:
    """The CPU cores of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def num_gpus() -> int:
    """The GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))
