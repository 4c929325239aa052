"""A real MLflow server on loopback that a test may start, kill and start again."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

MLFLOW = Path(sys.executable).parent / "mlflow"


def free_port(host: str) -> int:
    """A port that stays free until a server has started: the system gives none below 32768 to whoever asks for any."""
    for port in random.sample(range(15000, 32000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise AssertionError("no port is free")


class TrackingServer:
    """A server with its own database and artefacts in `folder`; its URI stays the same over restarts."""

    def __init__(self, folder: Path, host: str = "127.0.0.1"):
        self._folder, self._host = folder, host
        self._port = free_port(host)
        self.uri = f"http://{host}:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the server answers."""
        command = [MLFLOW, "server", "--host", self._host, "--port", str(self._port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        # The jobs that a server may also run are no part of tracking, and double the time until it answers.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd=self._folder, env=environment
            )
        for _ in range(600):
            assert self._process.poll() is None, (self._folder / "log").read_text()
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self._folder / "log").read_text())

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends the server and all of its processes; SIGKILL leaves it no last word."""
        if self._process:
            os.killpg(self._process.pid, how)
            self._process.wait(timeout=30)
            self._process = None


KILLED_AFTER_CALL = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient

original = getattr(MlflowClient, sys.argv[3])

def killed(*args, **kwargs):
    original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(MlflowClient, sys.argv[3], killed)
"""
"""The start of a script that is killed as soon as a call of MLflow's client, its third argument, has returned."""
