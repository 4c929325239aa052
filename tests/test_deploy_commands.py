"""The commands of pipelines/deploy that need no cluster: the project's folder, and the ends of jobs.

Ray's job server is not among what the tests install; what it does was tried by hand (docs/clusters.md).
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from pipelines.deploy import leave, nodes, submit
from pipelines.deploy.project import bring_code
from psclap import log
from psclap.errors import PsclapError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout, as an image has it."""
    folder = tmp_path / "image"
    for name in ("psclap/__init__.py", "psclap/corpora/__init__.py", "psclap/corpora/old.py", "pipelines/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}, first")
    (folder / "dvc.yaml").write_text("stages: {make: {cmd: touch made, outs: [made]}}")
    (folder / "dvc.lock").write_text("schema: '2.0'")
    (folder / "metrics").mkdir()
    (folder / "metrics" / "first.json").write_text("{}")
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    return folder


def test_a_new_project_is_one_that_dvc_runs(checkout: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    bring_code(project, checkout)
    assert (project / "metrics" / "first.json").is_file()
    dvc = [sys.executable, "-m", "dvc", "repro", "--quiet"]
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    subprocess.run(dvc, cwd=project, env=environment, check=True)
    assert "made" in (project / "dvc.lock").read_text()


def test_each_night_has_the_code_of_the_image_and_the_state_of_the_project(checkout: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    bring_code(project, checkout)
    (project / "dvc.lock").write_text("of last night")
    (project / "runs").mkdir()
    (project / "runs" / "decision.json").write_text("of last night")
    (project / "psclap" / "__init__.py").write_text("changed by hand")
    (checkout / "psclap" / "corpora" / "old.py").rename(checkout / "psclap" / "corpora" / "new.py")
    (checkout / "dvc.yaml").write_text("stages: {}")
    (checkout / "data").mkdir()
    (project / "data" / "shards").mkdir(parents=True)
    (checkout / "data" / "manifest.csv.dvc").write_text("of the image")
    (checkout / "data" / "speakers.csv.dvc").write_text("of the image")
    (project / "data" / "manifest.csv.dvc").write_text("as `dvc update` left it")
    for _ in range(2):  # it can be run again
        bring_code(project, checkout)
    assert (project / "dvc.lock").read_text() == (project / "runs" / "decision.json").read_text() == "of last night"
    assert (project / "data" / "manifest.csv.dvc").read_text() == "as `dvc update` left it"
    assert (project / "data" / "speakers.csv.dvc").read_text() == "of the image"
    assert (project / "data" / "shards").is_dir()
    assert (project / "dvc.yaml").read_text() == "stages: {}"
    assert (project / "psclap" / "__init__.py").read_text() == "# psclap/__init__.py, first"
    assert sorted(path.name for path in (project / "psclap" / "corpora").iterdir()) == ["__init__.py", "new.py"]


def test_what_is_no_checkout_or_no_project_is_refused(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(PsclapError, match=r"no dvc\.yaml"):
        bring_code(tmp_path / "project", tmp_path)
    with pytest.raises(PsclapError, match="the checkout itself"):
        bring_code(checkout, checkout)


class _Info:
    def __init__(self, status: JobStatus, code: int | None):
        self.status, self.driver_exit_code, self.submission_id = status, code, "job"


class _Client:
    """As Ray's JobSubmissionClient: a job that runs until it is stopped, or has already ended with a status."""

    def __init__(self, status: JobStatus = JobStatus.RUNNING, code: int | None = None):
        self.info, self.submitted, self.unreachable = _Info(status, code), {}, 0

    def submit_job(self, **options: Any) -> str:
        self.submitted = options
        return "job"

    def get_job_info(self, job: str) -> _Info:
        if self.unreachable:
            self.unreachable -= 1
            raise ConnectionError("no answer")
        return self.info

    def list_jobs(self) -> list[_Info]:
        return [self.info]

    def stop_job(self, job: str) -> bool:
        self.info = _Info(JobStatus.STOPPED, None)
        return True

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "a line with https://me:hunter2@example.com\n"
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_POLL_S", 0.0)
    monkeypatch.setattr(leave, "_POLL_S", 0.0)
    for variable in (log.RUN_VARIABLE, log.STAGE_VARIABLE):  # which a command sets for those that it starts
        monkeypatch.setenv(variable, "test")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 10, 10),
        (JobStatus.FAILED, 11, 11),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.FAILED, None, 75),  # the cluster lost it
        (JobStatus.STOPPED, None, 130),
    ],
)
def test_a_job_ends_with_the_status_of_its_command(status: JobStatus, code: int | None, expected: int) -> None:
    client = _Client(status, code)
    assert submit.submit(client, ["sh", "-c", "exit $CODE"], stop_wait_s=90) == expected
    assert client.submitted["entrypoint"] == "sh -c 'exit $CODE'"
    assert client.submitted["runtime_env"] == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "90"}}


def test_sigterm_stops_the_job_and_waits_for_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert submit.submit(_Client(), ["sleep", "60"]) == 130
    assert signal.getsignal(signal.SIGTERM) is before
    assert "hunter2" not in capsys.readouterr().out


def test_a_head_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    client = _Client(JobStatus.FAILED, 10)
    client.unreachable = 3
    assert submit.follow(client, "job") == 10
    monkeypatch.setattr(submit, "_PATIENCE_S", -1.0)
    client.unreachable = 3
    with pytest.raises(submit.OutOfReachError, match="job may still run"):
        submit.follow(client, "job")


def test_no_head_at_all_is_to_be_tried_later(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.main(["--address", "http://127.0.0.1:9", "--", "true"]) == 75
    assert "no Ray head answers at http://127.0.0.1:9" in capsys.readouterr().err


def test_a_head_that_never_comes_is_waited_for_no_longer_than_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nodes, "_POLL_S", 0.01)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert nodes.main(["--wait-for", "2", "--within", "0.1"]) == 75
    assert "0 of 2 nodes joined within 0 s: none" in capsys.readouterr().err


def test_a_head_stops_its_jobs_before_it_ends() -> None:
    client = _Client()
    assert leave.leave_head(client, within_s=5)
    assert client.info.status is JobStatus.STOPPED
    stubborn = _Client()
    stubborn.stop_job = lambda job: True  # type: ignore[method-assign]
    assert not leave.leave_head(stubborn, within_s=0)
