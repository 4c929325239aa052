"""A small version of benchmarks/tracking_load.py: several clients record runs at once, and each thing is there once."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.soak  # test_storms.py and test_tracking.py have what it has met
def test_runs_of_many_clients_at_once_are_there_once() -> None:
    command = [sys.executable, "benchmarks/tracking_load.py", "--runs", "8", "--clients", "8", "--register-every", "4"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "8 runs by 8 clients" in ended.stdout
    assert re.search(r"\| POST runs/log-batch +\|", ended.stdout)
    assert ended.stdout.endswith("every run, metric and version is there once: 8 runs, 2 versions\n")
