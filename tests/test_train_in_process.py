"""A training in the process that was started, without Ray: disturbed, it ends as the one that nobody disturbed."""

import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from test_train_on_ray import STEPS, after_step, driver, journal_of, losses, products, small_run

from pipelines.train import Run
from psclap.loop_config import CheckpointConfig


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def trained(run: Run, folder: Path) -> str:
    """Trains to the end in a process of its own; returns what that said."""
    ended = subprocess.run(driver(run, folder), capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def disturbed(run: Run, folder: Path, by: signal.Signals) -> str:
    """Trains until it is sent a signal behind step 10; returns what it said."""
    process = subprocess.Popen(driver(run, folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    thread = after_step(run, 10, lambda: process.send_signal(by))
    said, _ = process.communicate(timeout=240)
    thread.join()
    assert process.returncode == (-signal.SIGKILL if by == signal.SIGKILL else 1), said  # 1: of a KeyboardInterrupt
    return said


@pytest.fixture(scope="module")
def undisturbed(mini_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run = small_run(mini_shards, folder, cpu_workers=0)
    assert trained(run, folder).endswith("without Ray\n")
    assert len(losses(run)) == STEPS
    return run, folder / "model"


def test_one_that_is_asked_to_end_writes_a_checkpoint_and_goes_on_from_it(
    mini_shards: Path, tmp_path: Path, undisturbed: tuple[Run, Path]
) -> None:
    run = small_run(mini_shards, tmp_path, cpu_workers=0)
    assert "stopping: a checkpoint is being written" in disturbed(run, tmp_path, signal.SIGTERM)
    last = max(losses(run))
    assert list(journal_of(run).read())[-1][0]["status"] == "KILLED"
    assert f"going on from step {last:.0f} of {STEPS}" in trained(run, tmp_path)
    assert products(tmp_path / "model") == products(undisturbed[1])
    assert losses(run) == losses(undisturbed[0])


def test_one_that_is_killed_goes_on_from_its_checkpoints_at_a_url_when_its_machine_is_lost(
    mini_shards: Path, tmp_path: Path, undisturbed: tuple[Run, Path], s3_server: str
) -> None:
    run = small_run(mini_shards, tmp_path, cpu_workers=0)
    checkpoints = CheckpointConfig(every_steps=4, url=f"{s3_server}/in-process")
    run = replace(run, training=replace(run.training, checkpoints=checkpoints))
    disturbed(run, tmp_path, signal.SIGKILL)
    shutil.rmtree(run.storage)
    assert "going on from step" in trained(run, tmp_path)
    assert products(tmp_path / "model") == products(undisturbed[1])
    assert losses(run) == losses(undisturbed[0])
