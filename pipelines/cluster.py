"""Connects to the Ray cluster that RAY_ADDRESS names, or starts one on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every worker's line twice
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
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
        ray.init(logging_level="WARNING")
    else:
        ray.init(include_dashboard=False, logging_level="WARNING")
    try:
        yield
    finally:
        ray.shutdown()


def num_gpus() -> int:
    """The GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))
