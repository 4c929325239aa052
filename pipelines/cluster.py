"""Connects to the Ray cluster that RAY_ADDRESS names, or starts one on this machine."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from psclap.errors import PsclapError

_MAX_RETRIES = 5
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every worker's line twice
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "token",  # the default; said, it is not warned about
}


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the length of a `with` block; a session that is already there is used and left alone."""
    if "ray" not in sys.modules:  # Ray reads its environment when it is imported; its processes must have the same
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level="WARNING", log_to_driver=False)
    else:
        # "local": without it Ray joins whatever cluster was last started on this machine.
        ray.init("local", include_dashboard=False, logging_level="WARNING", log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


Job = TypeVar("Job")
Result = TypeVar("Result")


def ray_map(function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """Yields `function(job)` for each job as it is done, one core each, wherever the cluster has one free.

    A job whose worker or node dies is run again elsewhere. The first exception of a job is raised here, and what
    has not been handed out is dropped; PsclapError for a job over which every worker dies. The few that are running
    then end with the session: `ray.cancel` of a task that is just done can end the driver (ray-project/ray#54738).
    """
    import ray

    task = ray.remote(num_cpus=1, max_retries=_MAX_RETRIES)(function)
    waiting = iter(jobs)
    running = {task.remote(job): job for job in itertools.islice(waiting, max(1, 2 * num_cpus()))}
    try:
        while running:
            (first,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(first)
            yield ray.get(first)
            running |= {task.remote(job): job for job in itertools.islice(waiting, 1)}
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        raise PsclapError(
            f"{_MAX_RETRIES + 1} worker processes died over {getattr(job, 'name', job)}; memory that runs out is the "
            f"usual reason. Ray says: {error}"
        ) from error


def num_cpus() -> int:
    """The CPU cores of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def num_gpus() -> int:
    """The GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))
