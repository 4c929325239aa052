"""Runs a command as a Ray job and ends with that command's own exit status.

    python -m pipelines.deploy.submit [--address http://HEAD:8265] [--working-dir FOLDER] -- COMMAND...

`ray job submit` ends with 1 whatever the status of a job that failed, and with 0 when the job was stopped; a scheduler
could act on neither. Ctrl-C and SIGTERM stop the job, which has `--stop-wait` seconds to write a checkpoint, and are
followed to its end. The token of the cluster is Ray's affair: RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from pipelines.deploy.outcomes import FAILED, INTERRUPTED, LATER, told
from psclap import log
from psclap.errors import PsclapError
from psclap.storage import redacted

_POLL_S = 1.0
_PATIENCE_S = 300.0
"""How long the head may be out of reach."""

_OUT_OF_REACH = (ConnectionError, RuntimeError, OSError)  # what Ray's client raises of a head that is away


class OutOfReachError(PsclapError):
    """The head of the cluster does not answer."""


def submit(client: Any, command: Sequence[str], working_dir: str | None = None, stop_wait_s: int = 120) -> int:
    """Runs `command` on the cluster of a JobSubmissionClient; returns its exit status, 130 where it was stopped.

    Its output goes to standard output. Raises OutOfReachError when the head stops answering; the job may still run.
    """
    # The process that runs the command reads from its environment how long to wait before SIGKILL.
    environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_wait_s)}}
    if working_dir:
        environment["working_dir"] = working_dir
    job = client.submit_job(entrypoint=shlex.join(command), runtime_env=environment)
    with _StoppingOnSignals(client, job):
        return follow(client, job)


def follow(client: Any, job: str) -> int:
    """Prints a job's output until it ends; returns its exit status."""
    last = time.monotonic()
    while True:
        try:
            info = client.get_job_info(job)
            if info.status.is_terminal():
                return exit_status(info)
            asyncio.run(_print_logs(client, job))
            last = time.monotonic()
        except _OUT_OF_REACH as error:
            if time.monotonic() - last > _PATIENCE_S:
                raise OutOfReachError(
                    f"the head has not answered for {_PATIENCE_S:.0f} s, job {job} may still run: {error}"
                ) from error
        time.sleep(_POLL_S)


def exit_status(info: Any) -> int:
    """The exit status of a job that ended: its command's, 130 where it was stopped, 75 where the cluster lost it."""
    if info.driver_exit_code is not None:
        code = int(info.driver_exit_code)
        return code if code >= 0 else 128 - code  # a signal's number, as shells have it
    return INTERRUPTED if info.status.value == "STOPPED" else LATER


async def _print_logs(client: Any, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        sys.stdout.write(redacted(lines))
        sys.stdout.flush()


class _StoppingOnSignals:
    """Within its `with` block Ctrl-C and SIGTERM stop the job; another one leaves at once, with KeyboardInterrupt."""

    def __init__(self, client: Any, job: str):
        self._client, self._job, self._asked = client, job, False

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, *_: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        log.warning(f"stopping job {self._job}; once more leaves it alone", job=self._job)
        self._client.stop_job(self._job)


def _connect(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except _OUT_OF_REACH as error:
        raise OutOfReachError(f"no Ray head answers at {address}: {error}") from error


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.deploy.submit", description="A command as a Ray job.")
    default = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    parser.add_argument("--address", default=default, help="the head's dashboard; default: RAY_API_SERVER_ADDRESS")
    parser.add_argument("--working-dir", help="a folder to send along; without it the command runs in the image's")
    parser.add_argument("--stop-wait", type=int, default=120, metavar="S", help="seconds between SIGTERM and SIGKILL")
    parser.add_argument(
        "command", nargs="+", help="after --, such as python -m pipelines.retrain --config retrain.yaml"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    from ray.exceptions import AuthenticationError

    try:
        log.begin("submit")
        client = _connect(arguments.address)
        code = submit(client, arguments.command, arguments.working_dir, arguments.stop_wait)
    except AuthenticationError as error:
        log.error(f"error: {arguments.address} refuses the token: {error}")
        return FAILED
    except PsclapError as error:
        log.failed(error)
        return LATER if isinstance(error, OutOfReachError) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    log.info(f"job: {told(code)}", exit_status=code)
    return code


if __name__ == "__main__":
    sys.exit(main())
