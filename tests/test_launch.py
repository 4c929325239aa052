"""The launcher of RayJobs against a small API server on loopback, which refuses what Kubernetes would refuse."""

import inspect
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_schemas import RefusedError, check

from pipelines.deploy import launch
from pipelines.deploy.launch import LaunchError, OutOfReachError, RayJobs
from psclap import log

TEMPLATE = yaml.safe_load((Path(launch.__file__).parent / "kubernetes" / "rayjob.yaml").read_text())
PATH = "/apis/ray.io/v1/namespaces/psclap/rayjobs"
JOB, UID, RAYJOB = "psclap-retrain-29389080", "5f3c", "psclap-retrain-29389080-ray"
ENDED = "Job entrypoint command failed with exit code {}, last available logs (truncated to 20,000 chars):\nexit code 0"


def failed(code: int) -> dict[str, str]:
    return {
        "jobDeploymentStatus": "Failed",
        "jobStatus": "FAILED",
        "reason": "AppFailed",
        "message": ENDED.format(code),
    }


class ApiServer(ThreadingHTTPServer):
    """RayJobs in memory. A new one goes through `statuses`, one at each look; `troubles` are answered first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.rayjobs: dict[str, dict[str, Any]] = {TEMPLATE["metadata"]["name"]: TEMPLATE}
        self.statuses: list[dict[str, str]] = []
        self.troubles: list[int] = []
        self.log: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def do_GET(self) -> None:
        rayjob = self.server.rayjobs.get(self.path.rsplit("/", 1)[1])
        if rayjob and rayjob is not TEMPLATE and self.server.statuses:
            rayjob["status"] = self.server.statuses.pop(0)
        self._answer(*((200, rayjob) if rayjob else (404, {"message": "not found"})))

    def do_POST(self) -> None:
        rayjob = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            check(rayjob)
        except RefusedError as error:
            self._answer(422, {"message": str(error)})
            return
        if rayjob["metadata"]["name"] in self.server.rayjobs:
            self._answer(409, {"message": "it exists"})
            return
        self.server.rayjobs[rayjob["metadata"]["name"]] = rayjob
        self._answer(201, rayjob)

    def do_DELETE(self) -> None:
        rayjob = self.server.rayjobs.pop(self.path.rsplit("/", 1)[1], None)
        self._answer(200 if rayjob else 404, {})

    def _answer(self, code: int, body: Any) -> None:
        if not self.path.startswith(PATH) or self.headers["Authorization"] != "Bearer the token":
            code, body = 403, {"message": "forbidden"}
        elif self.server.troubles:
            code, body = self.server.troubles.pop(0), {"message": "trouble"}
        self.server.log.append(f"{self.command} {self.path.removeprefix(PATH)} {code}")
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setattr(launch, "_POLL_S", 0.0)
    for variable in (log.RUN_VARIABLE, log.STAGE_VARIABLE):  # which a command sets for those that it starts
        monkeypatch.setenv(variable, "test")
    with ApiServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def client(api: ApiServer, token: str = "the token") -> RayJobs:
    return RayJobs(f"http://127.0.0.1:{api.server_port}", "psclap", lambda: token)


def run(api: ApiServer) -> int:
    return launch.launch(client(api), "psclap-retrain", JOB, UID)


def test_a_rayjob_runs_as_its_template_says(api: ApiServer) -> None:
    api.statuses = [
        {"jobDeploymentStatus": "Initializing"},
        {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"},
        {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"},
    ]
    assert run(api) == 0
    made = api.rayjobs[RAYJOB]
    assert made["spec"] == {**TEMPLATE["spec"], "suspend": False}
    assert made["metadata"]["ownerReferences"] == [{"apiVersion": "batch/v1", "kind": "Job", "name": JOB, "uid": UID}]
    assert TEMPLATE["spec"]["suspend"] is True


def test_kuberays_own_job_gets_a_name_of_its_own(api: ApiServer) -> None:
    """KubeRay names the Job that submits after the RayJob; of our Job's name it would take ours for it."""
    api.statuses = [failed(1)]
    run(api)
    assert JOB not in api.rayjobs


@pytest.mark.parametrize("code", [1, 2, 10, 11])
def test_an_outcome_is_kept_for_who_looks_in_the_morning(api: ApiServer, code: int) -> None:
    api.statuses = [failed(code)]
    assert run(api) == code
    assert RAYJOB in api.rayjobs


LOST = {"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed", "message": "the head went away, exit code 1"}
AGAIN = [
    (failed(75), 75),
    (failed(130), 130),
    (failed(-9), 137),
    (LOST, 75),
    ({"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded", "message": "no GPUs"}, 75),
    ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED", "message": "Job was intentionally stopped."}, 130),
]


@pytest.mark.parametrize(("status", "code"), AGAIN)
def test_what_is_tried_again_is_made_anew(api: ApiServer, status: dict[str, str], code: int) -> None:
    api.statuses = [status, {}, {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
    assert run(api) == code
    assert RAYJOB not in api.rayjobs
    api.statuses = [{"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
    assert run(api) == 0
    assert [line for line in api.log if line.startswith("POST")] == ["POST  201", "POST  201"]


@pytest.mark.parametrize(
    "status",
    [
        {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "message": "too long"},
        {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "wrong"},
    ],
)
def test_what_would_go_wrong_again_is_not_tried_again(api: ApiServer, status: dict[str, str]) -> None:
    api.statuses = [status]
    assert run(api) == 1


def test_a_second_launcher_takes_the_rayjob_up(api: ApiServer) -> None:
    """As when the node of the first one went away: nothing is started twice."""
    api.rayjobs[RAYJOB] = {"metadata": {"name": RAYJOB}}
    api.statuses = [{"jobDeploymentStatus": "Running"}, failed(10)]
    assert run(api) == 10
    assert not any(line.startswith("POST") for line in api.log)


def test_an_api_server_that_is_away_is_waited_for(api: ApiServer) -> None:
    api.statuses = [failed(10)]
    api.troubles = [503, 429, 500]
    assert run(api) == 10


def test_one_that_stays_away_is_said(api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_PATIENCE_S", 0.0)
    api.troubles = [503] * 5
    with pytest.raises(OutOfReachError, match="503"):
        run(api)


def test_a_missing_template_or_right_is_said(api: ApiServer) -> None:
    with pytest.raises(LaunchError, match="kubectl apply -k"):
        launch.launch(client(api), "psclap-other", JOB, UID)
    with pytest.raises(LaunchError, match=r"403: .*forbidden"):
        launch.launch(client(api, token="another"), "psclap-retrain", JOB, UID)


def test_a_rayjob_that_somebody_deletes_is_tried_again(api: ApiServer) -> None:
    api.rayjobs[RAYJOB] = {"metadata": {"name": RAYJOB}}
    looked = client(api)
    assert launch.patiently(lambda: looked.get(RAYJOB)) is not None
    looked.delete(RAYJOB)
    assert launch._wait(looked, RAYJOB) == 130


def test_main_ends_with_what_a_job_acts_on(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RayJobs, "of_this_pod", lambda: client(api))
    monkeypatch.setattr("sys.argv", ["launch", "psclap-retrain"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert launch.main() == 1  # of no Job
    monkeypatch.setenv("JOB_NAME", JOB)
    monkeypatch.setenv("JOB_UID", UID)
    for outcome, status in ((10, 0), (11, 11), (75, 75)):
        api.rayjobs.pop(RAYJOB, None)
        api.statuses = [failed(outcome)]
        assert launch.main() == status
    assert "the champion was kept" in capsys.readouterr().out


def test_rays_message_begins_as_we_read_it() -> None:
    """KubeRay passes Ray's message on, and nothing else has the exit status."""
    from ray.dashboard.modules.job import job_supervisor

    source = inspect.getsource(job_supervisor).replace('"\n', "").replace(" " * 28 + 'f"', "")
    assert '"Job entrypoint command failed with exit code {return_code}, ' in source
