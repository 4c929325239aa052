"""Connects to the Ray cluster that RAY_ADDRESS names, or starts one on this machine."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from pipelines.lost import Watch
from psclap import log
from psclap.errors import PsclapError, first_line

_MAX_RETRIES = 5
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every worker's line twice
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "token",  # the default; said, it is not warned about
}


@contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the length of a `with` block; a session that is already there is used and left alone.

    Raises PsclapError where RAY_ADDRESS names no cluster that can be joined, ClusterLostError when it goes away.
    """
    if "ray" not in sys.modules:  # Ray reads its environment when it is imported; its processes must have the same
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    _connect(address)
    # The head of a cluster may go its own way; one that this process has started goes with it.
    watch = Watch(ray.get_runtime_context().gcs_address) if address else None
    with watch or nullcontext():
        try:
            with watch.explaining() if watch else nullcontext():
                yield
        finally:
            ray.shutdown()


def has_cluster() -> bool:
    """Whether Ray is there, or RAY_ADDRESS says where: `ray_session` then has nothing to start."""
    if os.environ.get("RAY_ADDRESS"):
        return True
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _connect(address: str | None) -> None:
    import ray

    if not address:
        # "local": without it Ray joins whatever cluster was last started on this machine.
        with _on_loopback():
            ray.init("local", include_dashboard=False, logging_level="WARNING", log_to_driver=False)
        return
    if address.startswith("ray://"):
        raise PsclapError(
            f"RAY_ADDRESS {address}: from outside the cluster nothing can be kept on its nodes; use `ray job submit`, "
            "or HOST:6379 on a machine that is a node of it"
        )
    # Its processes have not this one's environment; what `ray job submit` gave them already may be said again.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    try:
        ray.init(logging_level="WARNING", log_to_driver=False, runtime_env={"env_vars": log.environment()})
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise PsclapError(
            f"RAY_ADDRESS {address}: no Ray cluster can be joined there ({first_line(error)}). Its head has to run, "
            "this machine has to be a node of it (`ray start --address=...`), and RAY_AUTH_TOKEN the same on all; or "
            "unset RAY_ADDRESS to work on this machine alone"
        ) from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Servers that Ray starts in a `with` block serve this machine alone, not the network, as they do by default.

    The switch is for systems on which Ray makes no clusters. What the environment says already stands.
    """
    from ray._private import ray_constants

    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    if name in os.environ:
        yield
        return
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[name]


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


def on_this_node() -> dict[str, Any]:
    """Options of a task or an actor that is to run on the driver's node, or on this worker's, and nowhere else."""
    import ray

    return {"scheduling_strategy": _only(ray.get_runtime_context().get_node_id())}


def on_every_node(function: Callable[..., None], *arguments: Any) -> None:
    """Runs a function on each node, at once and without a core; of a node that is lost nothing comes."""
    import ray

    task = ray.remote(num_cpus=0)(function)
    alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    for running in [task.options(scheduling_strategy=_only(node)).remote(*arguments) for node in alive]:
        with suppress(ray.exceptions.RayError):
            ray.get(running)


def _only(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def num_cpus() -> int:
    """The CPU cores of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def num_gpus() -> int:
    """The GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


@dataclass(frozen=True)
class Node:
    """The cores and GPUs of a node of the cluster."""

    cpus: int
    gpus: int


def nodes() -> list[Node]:
    """The nodes of the connected cluster that are alive and have cores to work on."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(of["CPU"]), int(of.get("GPU", 0))) for of in resources if of.get("CPU", 0) >= 1]
