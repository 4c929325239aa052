"""What a pod does before it ends: Kubernetes' preStop hook, within `terminationGracePeriodSeconds`.

    python -m pipelines.deploy.leave head --within 100      # stops the Ray jobs and waits until they have ended
    python -m pipelines.deploy.leave worker --within 100    # tells Ray that this node goes away, so that trainings save

Without it, the SIGTERM of a pod ends Ray itself, and what runs on it is killed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_POLL_S = 1.0


def leave_head(client: Any, within_s: float) -> bool:
    """Stops every Ray job of a JobSubmissionClient; returns whether all have ended in time."""

    def running() -> list[Any]:
        return [job for job in client.list_jobs() if job.submission_id and not job.status.is_terminal()]

    for job in running():
        client.stop_job(job.submission_id)
    return _wait(lambda: not running(), within_s)


def leave_worker(within_s: float) -> bool:
    """Drains this machine's node: nothing new comes here, trainings write a checkpoint, and what runs may end.

    Returns whether nothing of Ray's works here any more.
    """
    import ray

    ray.init(log_to_driver=False, logging_level="ERROR")  # the node of RAY_ADDRESS's cluster on this machine
    node = ray.get_runtime_context().get_node_id()
    ray.shutdown()
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the pod ends"]
    deadline = ["--deadline-remaining-seconds", str(round(within_s))]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--node-id", node, *reason, *deadline])
    return _wait(lambda: not _busy_workers(), within_s)


def _busy_workers() -> list[str]:
    """The titles of this pod's Ray workers that do something; an idle one is called ray::IDLE."""
    titles = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            titles.append((process / "cmdline").read_text(errors="replace"))
    return [title for title in titles if title.startswith("ray::") and not title.startswith("ray::IDLE")]


def _wait(is_over: Callable[[], bool], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not (over := is_over()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return over


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 where everything ended in time."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.deploy.leave", description="Ends a Ray node in peace.")
    parser.add_argument("node", choices=["head", "worker"])
    parser.add_argument("--within", type=float, required=True, metavar="S", help="seconds until the pod is killed")
    arguments = parser.parse_args(argv)
    if arguments.node == "worker":
        return int(not leave_worker(arguments.within))
    from ray.job_submission import JobSubmissionClient

    return int(not leave_head(JobSubmissionClient("http://127.0.0.1:8265"), arguments.within))


if __name__ == "__main__":
    sys.exit(main())
