"""Starts a RayJob of KubeRay from its template, waits for its end, and ends with the exit status of what it ran.

    python -m pipelines.deploy.launch psclap-retrain

A Kubernetes CronJob runs this. The template is a RayJob of that name, suspended, in the same namespace. The RayJob is
named after the Job that this pod is of (JOB_NAME, JOB_UID), and belongs to it: it goes with the Job, and one that is
there already, as when a node with this pod went away, is taken up and not started twice. An outcome that is to be tried
again removes the RayJob; then it ends with that status, and the Job starts the next pod. A champion that was kept, 10,
is no failure of the Job and ends with 0.

It needs the rights to create, get and delete RayJobs, and nothing else.
"""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.deploy.outcomes import DONE, FAILED, INTERRUPTED, KEPT, LATER, MISUSED, UNSOUND, told
from psclap import log
from psclap.errors import PsclapError

_POLL_S = 10.0
_PATIENCE_S = 600.0
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_FINAL = (DONE, FAILED, MISUSED, KEPT, UNSOUND)
_EXIT_CODE = re.compile(r"Job entrypoint command failed with exit code (-?\d+)")  # how Ray's message begins


class LaunchError(PsclapError):
    """What a person has to mend."""


class OutOfReachError(PsclapError):
    """The API server does not answer, or not now."""


@dataclass(frozen=True)
class RayJobs:
    """The RayJobs of a namespace, over the API server's HTTP. `token` reads the token: Kubernetes renews it."""

    server: str
    namespace: str
    token: Callable[[], str]
    tls: ssl.SSLContext | None = None

    @classmethod
    def of_this_pod(cls) -> RayJobs:
        """With the pod's service account."""
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        return cls(
            f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
            (_ACCOUNT / "namespace").read_text(),
            (_ACCOUNT / "token").read_text,
            ssl.create_default_context(cafile=_ACCOUNT / "ca.crt"),
        )

    def get(self, name: str) -> dict[str, Any] | None:
        """The RayJob of that name, or None."""
        return self._ask("GET", f"/{name}")

    def create(self, rayjob: Mapping[str, Any]) -> None:
        """Makes a RayJob; one of that name may be there."""
        self._ask("POST", "", rayjob)

    def delete(self, name: str) -> None:
        """Removes a RayJob and waits until it is gone."""
        patiently(lambda: self._ask("DELETE", f"/{name}"))
        while patiently(lambda: self.get(name)):
            time.sleep(_POLL_S)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The answer; None of what is not there, or, on POST, is there already."""
        request = urllib.request.Request(
            f"{self.server}/apis/ray.io/v1/namespaces/{self.namespace}/rayjobs{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token()}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.tls) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404 or (method == "POST" and error.code == 409):
                return None
            reason = error.read().decode(errors="replace")[:500]
            kind = OutOfReachError if error.code in (408, 429) or error.code >= 500 else LaunchError
            raise kind(f"{method} rayjobs{path} in {self.namespace}: status {error.code}: {reason}") from error
        except (OSError, ValueError) as error:
            raise OutOfReachError(f"the API server at {self.server} does not answer: {error}") from error


def launch(rayjobs: RayJobs, template: str, job: str, uid: str) -> int:
    """Runs the RayJob of a Job to its end; returns the exit status of its command, or 75 where the cluster lost it.

    Raises LaunchError where the template or a right is missing, OutOfReachError where the API server stays away.
    """
    name = f"{job}-ray"  # not the Job's own: KubeRay names a Job of its own after a RayJob
    if patiently(lambda: rayjobs.get(name)) is None:
        original = patiently(lambda: rayjobs.get(template))
        if original is None:
            raise LaunchError(f"no RayJob {template} in {rayjobs.namespace}; `kubectl apply -k` makes it")
        patiently(lambda: rayjobs.create(from_template(original, name, job, uid)))
        log.info(f"RayJob {name} is made", rayjob=name)
    code = _wait(rayjobs, name)
    log.info(f"RayJob {name}: {told(code)}", rayjob=name, exit_status=code)
    if code not in _FINAL:
        rayjobs.delete(name)
    return code


def from_template(template: Mapping[str, Any], name: str, job: str, uid: str) -> dict[str, Any]:
    """A RayJob as its template says, running, that belongs to the Job `job` of that uid."""
    metadata = {
        "name": name,
        "labels": template["metadata"].get("labels", {}),
        "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": uid}],
    }
    spec = {**template["spec"], "suspend": False}
    return {"apiVersion": template["apiVersion"], "kind": template["kind"], "metadata": metadata, "spec": spec}


def exit_status(status: Mapping[str, Any]) -> int | None:
    """The exit status that a RayJob's status means; None while it is under way.

    >>> exit_status({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})
    >>> exit_status({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    0
    """
    deployment, reason = status.get("jobDeploymentStatus"), status.get("reason")
    if deployment == "ValidationFailed" or reason == "DeadlineExceeded":
        return FAILED
    if deployment == "Complete":
        return INTERRUPTED if status.get("jobStatus") == "STOPPED" else DONE
    if deployment != "Failed":
        return None
    match = _EXIT_CODE.match(status.get("message", ""))
    if not match:  # the head went away, pods were never given, ...
        return LATER
    code = int(match[1])
    return code if code >= 0 else 128 - code  # a signal's number, as shells have it


def _wait(rayjobs: RayJobs, name: str) -> int:
    seen = None
    while True:
        rayjob = patiently(lambda: rayjobs.get(name))
        if rayjob is None:
            log.warning(f"RayJob {name} was deleted by somebody", rayjob=name)
            return INTERRUPTED
        status = rayjob.get("status", {})
        if (now := (status.get("jobDeploymentStatus"), status.get("jobStatus"))) != seen:
            seen = now
            log.info(f"RayJob {name}: {' '.join(filter(None, now)) or 'new'} {status.get('message', '')}", rayjob=name)
        if (code := exit_status(status)) is not None:
            return code
        time.sleep(_POLL_S)


def patiently(ask: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """Asks again for ten minutes while the API server does not answer."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return ask()
        except OutOfReachError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)


def main() -> int:
    """Runs the command line; returns the exit status."""
    # The first process of a container ignores SIGTERM where it has no handler. The RayJob goes on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        log.begin("launch")
        if len(sys.argv) != 2 or not os.environ.get("JOB_NAME") or not os.environ.get("JOB_UID"):
            raise LaunchError("usage: JOB_NAME=... JOB_UID=... python -m pipelines.deploy.launch TEMPLATE")
        code = launch(RayJobs.of_this_pod(), sys.argv[1], os.environ["JOB_NAME"], os.environ["JOB_UID"])
    except PsclapError as error:
        log.failed(error)
        return LATER if isinstance(error, OutOfReachError) else FAILED
    return DONE if code == KEPT else code


if __name__ == "__main__":
    sys.exit(main())
