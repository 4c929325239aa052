"""Waits until a Ray cluster has all its nodes.

    RAY_ADDRESS=... python -m pipelines.deploy.nodes --wait-for 3 --within 300

Ends with 75, and names the nodes that are there, when the others do not come in time.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
import time
from collections.abc import Sequence

from pipelines.deploy.outcomes import DONE, FAILED, LATER
from psclap import log

_POLL_S = 2.0


def wait_for_nodes(count: int, within_s: float) -> list[str]:
    """The addresses of the living nodes of RAY_ADDRESS's cluster, when they are `count`, or when the time is over."""
    deadline = time.monotonic() + within_s
    while len(there := _nodes()) < count and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return there


def _nodes() -> list[str]:
    """None before the head answers."""
    import ray

    host, port = os.environ["RAY_ADDRESS"].rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=_POLL_S):  # Ray itself would wait for minutes
            pass
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level="ERROR")
        return sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
    except (OSError, RuntimeError, ValueError):  # the head is not up yet
        return []


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.deploy.nodes", description="Waits for a cluster's nodes."
    )
    parser.add_argument("--wait-for", type=int, required=True, metavar="N")
    parser.add_argument("--within", type=float, default=300.0, metavar="S", help="seconds")
    arguments = parser.parse_args(argv)
    if not re.fullmatch(r".+:\d+", os.environ.get("RAY_ADDRESS", "")):  # Ray would join, or start, some other cluster
        log.error("RAY_ADDRESS must name the cluster, such as 10.0.0.5:6379")
        return FAILED
    there = wait_for_nodes(arguments.wait_for, arguments.within)
    names = ", ".join(there) or "none"
    if len(there) >= arguments.wait_for:
        log.info(f"all {len(there)} nodes are there: {names}", nodes=there)
        return DONE
    log.error(
        f"{len(there)} of {arguments.wait_for} nodes joined within {arguments.within:.0f} s: {names}; the logs of the "
        "others' `ray start` say why",
        nodes=there,
    )
    return LATER


if __name__ == "__main__":
    sys.exit(main())
