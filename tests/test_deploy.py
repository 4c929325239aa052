"""The files of pipelines/deploy against their schemas and parsers, and against what we promise of them."""

import configparser
import copy
import importlib.util
import ipaddress
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser
from kubernetes_schemas import RefusedError, check, containers, pods

from pipelines.deploy import launch, leave, nodes, outcomes, submit

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "pipelines" / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
FINAL = [outcomes.FAILED, outcomes.MISUSED, outcomes.UNSOUND]
"""Exit statuses that are not tried again, and alarm."""
IMAGE = "registry.example.com/psclap:0000000-cuda"
FILES = [path for path in sorted(DEPLOY.rglob("*")) if path.is_file() and path.suffix not in (".py", ".pyc")]


def manifests() -> dict[str, dict[str, Any]]:
    """Every object of the manifests, by kind and name, as written."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    objects = [
        each for name in kustomization["resources"] for each in yaml.safe_load_all((KUBERNETES / name).read_text())
    ]
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in objects}


MANIFESTS = manifests()
CRONJOB, RAYJOB = MANIFESTS["CronJob/psclap-retrain"], MANIFESTS["RayJob/psclap-retrain"]
JOB = CRONJOB["spec"]["jobTemplate"]["spec"]
PODS = [pod for manifest in MANIFESTS.values() for pod in pods(manifest)]


@pytest.mark.parametrize("name", MANIFESTS)
def test_an_api_server_would_take_each_manifest(name: str) -> None:
    check(MANIFESTS[name])


def _spoiled() -> Iterator[tuple[str, str, Any]]:
    head = "spec.rayClusterSpec.headGroupSpec.template.spec"
    yield "RayJob/psclap-retrain", "spec.entryPoint", "python"
    yield "RayJob/psclap-retrain", "spec.submissionMode", "Sidecar"
    yield "RayJob/psclap-retrain", "spec.shutdownAfterJobFinishes", False
    yield "RayJob/psclap-retrain", "spec.rayClusterSpec.workerGroupSpecs.0.minReplicas", "2"
    yield "RayJob/psclap-retrain", "spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0
    yield "RayJob/psclap-retrain", f"{head}.containers.0.resource", {}
    yield "RayJob/psclap-retrain", f"{head}.containers.0.volumeMounts.0.name", "projekt"
    yield "RayJob/psclap-retrain", f"{head}.terminationGracePeriodSeconds", "long"
    yield "CronJob/psclap-retrain", "spec.concurrencyPolicies", "Forbid"
    yield "CronJob/psclap-retrain", "spec.jobTemplate.spec.template.spec.containers.0.commands", []
    yield "Role/psclap-launch", "rules.0.verb", ["get"]
    yield "NetworkPolicy/psclap", "spec.ingress.1.ports.0.ports", 8265
    yield "PersistentVolumeClaim/psclap-project", "spec.accessModes", "ReadWriteOnce"


@pytest.mark.parametrize(("name", "path", "value"), list(_spoiled()))
def test_a_spoiled_manifest_is_refused(name: str, path: str, value: Any) -> None:
    manifest = copy.deepcopy(MANIFESTS[name])
    *parents, last = path.split(".")
    place: Any = manifest
    for key in parents:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    with pytest.raises(RefusedError):
        check(manifest)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl renders them, and there is none")
def test_kustomize_names_one_image_everywhere() -> None:
    rendered = subprocess.run(["kubectl", "kustomize", KUBERNETES], capture_output=True, text=True, check=True).stdout
    for manifest in yaml.safe_load_all(rendered):
        check(manifest)
        for pod in pods(manifest):
            assert {container["image"] for container in containers(pod)} == {IMAGE}


def test_one_place_says_which_image() -> None:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    (image,) = kustomization["images"]
    assert {container["image"] for pod in PODS for container in containers(pod)} == {image["name"]}
    assert f"{image['newName']}:{image['newTag']}" == IMAGE
    assert yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())["docker"]["image"] == IMAGE


def test_pods_have_no_more_rights_than_they_need() -> None:
    for pod in PODS:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.get("serviceAccountName") == "psclap-launch" or pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        for container in containers(pod):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"] == container["resources"]["limits"]
    (rule,) = MANIFESTS["Role/psclap-launch"]["rules"]
    assert rule == {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "delete"]}


def test_a_pod_has_time_for_what_it_does_before_its_end() -> None:
    cluster = RAYJOB["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        within_s = float(hook[hook.index("--within") + 1])
        assert within_s + 10 <= pod["terminationGracePeriodSeconds"]
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    (stop_wait,) = [entry["value"] for entry in head["env"] if entry["name"] == "RAY_JOB_STOP_WAIT_TIME_S"]
    assert float(stop_wait) <= within_s + 60


def test_the_job_acts_on_exit_statuses() -> None:
    assert CRONJOB["spec"]["concurrencyPolicy"] == "Forbid"
    failing = [rule["onExitCodes"] for rule in JOB["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    launcher = JOB["template"]["spec"]["containers"][0]["name"]
    assert failing == [
        {"containerName": launcher, "operator": "In", "values": FINAL},
    ]
    assert JOB["backoffLimit"] > 0  # the others are tried again
    assert JOB["template"]["spec"]["restartPolicy"] == "Never"  # which podFailurePolicy needs
    assert RAYJOB["spec"]["backoffLimit"] == 0  # nobody tries again twice


def test_systemd_acts_on_exit_statuses() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "systemd" / "psclap-retrain.service")
    service = unit["Service"]
    assert service["SuccessExitStatus"] == str(outcomes.KEPT)
    assert service["RestartPreventExitStatus"].split() == [str(code) for code in FINAL]
    assert service["Restart"] == "on-failure"
    assert unit["Unit"]["OnFailure"]
    assert service["Type"] == "exec"  # of a oneshot, systemd may not restart every failure


def test_rays_own_schema_takes_the_cluster_file() -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
    validate_config(prepare_config(copy.deepcopy(config)))
    with pytest.raises(ValidationError, match="head_start_commands"):
        validate_config(prepare_config({**config, "head_start_commands": []}))


def test_the_cluster_file_brings_up_the_nodes_that_it_names() -> None:
    config = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_holds_a_secret(path: Path) -> None:
    text = path.read_text()
    secret = r"(?i)(password|passwd|secret_access_key|access_key_id|token|credential)s?\"?\s*[:=]\s*['\"]?[\w/+-]{8,}"
    found = [match[0] for match in re.finditer(secret, text) if "psclap-credentials" not in match[0]]
    assert found == []
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|://[^/\s]+:[^/\s]+@", text)


def test_the_search_for_secrets_finds_one() -> None:
    with pytest.raises(AssertionError):
        test_no_file_holds_a_secret(_FakePath("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMIK7MDENG"))  # type: ignore[arg-type]


class _FakePath:
    def __init__(self, text: str):
        self._text = text

    def read_text(self) -> str:
        return self._text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_listens_everywhere(path: Path) -> None:
    for found in re.findall(r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b", path.read_text()):
        assert ipaddress.ip_address(found).is_loopback
    assert not re.search(r"hostPort|NodePort|LoadBalancer|dashboard-host[= ](?!127\.0\.0\.1)", path.read_text())


def _commands() -> Iterator[str]:
    for pod in PODS:
        for container in containers(pod):
            yield shlex.join(container.get("command", []))
            yield shlex.join(container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", []))
    yield RAYJOB["spec"]["entrypoint"]
    yield from (path.read_text() for path in FILES if path.suffix in (".sh", ".service", ".yaml"))


def test_the_modules_that_are_run_exist() -> None:
    run = {name for command in _commands() for name in re.findall(r"\bpython -m ([\w.]+)", command)}
    assert run >= {"pipelines.deploy.launch", "pipelines.deploy.leave", "pipelines.deploy.project", "pipelines.retrain"}
    missing = {name for name in run if importlib.util.find_spec(name) is None}
    assert missing == set()


def test_the_commands_take_the_arguments_that_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their real parsers, and nothing to talk to."""
    called: list[tuple[Any, ...]] = []
    monkeypatch.setattr(leave, "leave_worker", lambda within_s: not called.append(("worker", within_s)))
    monkeypatch.setattr(
        nodes, "wait_for_nodes", lambda count, within_s: called.append((count, within_s)) or ["a"] * count
    )
    worker = RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    hook = worker["lifecycle"]["preStop"]["exec"]["command"]
    assert leave.main(hook[hook.index("pipelines.deploy.leave") + 1 :]) == 0
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert nodes.main(["--wait-for", "3"]) == outcomes.FAILED
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.7:20017")
    assert nodes.main(["--wait-for", "3", "--within", "600"]) == 0
    assert nodes.main(["--wait-for", "0", "--within", "1"]) == 0
    assert called == [("worker", 100.0), (3, 600.0), (0, 1.0)]
    service = (DEPLOY / "systemd" / "psclap-retrain.service").read_text()
    started = shlex.split(service.split("pipelines.deploy.submit", 1)[1].splitlines()[0])
    assert submit._arguments(started).command == shlex.split(RAYJOB["spec"]["entrypoint"])


def test_the_launcher_starts_the_template_that_is_there() -> None:
    command = JOB["template"]["spec"]["containers"][0]["command"]
    assert command == ["python", "-m", launch.__name__, RAYJOB["metadata"]["name"]]
    assert RAYJOB["spec"]["suspend"] is True
    assert RAYJOB["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
    assert not set("&|;<>$`'\"") & set(RAYJOB["spec"]["entrypoint"])  # a shell of the submitter's reads it first


def instructions() -> list[tuple[str, str]]:
    parser = DockerfileParser(str(DEPLOY / "Dockerfile"))
    return [(each["instruction"], each["value"]) for each in parser.structure if each["instruction"] != "COMMENT"]


def test_the_image_is_of_the_lock_and_of_no_root() -> None:
    found = instructions()
    assert found[0] == ("FROM", "python:3.11-slim-bookworm")
    assert [value for name, value in found if name == "USER"][-1] == "1000:1000"
    runs = [value for name, value in found if name == "RUN"]
    assert any("--requirement /opt/locks/requirements.lock" in run for run in runs)
    order = [value for name, value in found if name in ("COPY", "RUN")]
    code = next(number for number, value in enumerate(order) if value.startswith(". "))
    assert all("requirements.lock" not in value for value in order[code:])  # a change of code installs nothing anew


def test_what_the_image_copies_is_in_the_context() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]
    assert lines[1] == "*"  # nothing that is not named
    optional = {"retrain.yaml", "**/?*.dvc"}
    assert [name for name in kept if name not in optional and not (ROOT / name).exists()] == []
    for name, value in instructions():
        if name == "COPY":
            for source in value.split()[:-1]:
                assert (ROOT / source).exists()
                assert source == "." or source.split("/")[0] in kept
    assert not {"data", "models", "runs", "mlflow", ".git", ".dvc", ".env"} & set(kept)


def test_the_cluster_lock_fits_the_lock() -> None:
    """The two together are what ray[default] asks for, and no package is pinned twice."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    def pins(path: Path) -> dict[str, str]:
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        return {re.sub(r"[-_.]+", "-", name).lower(): pin for name, pin in (line.split("==") for line in lines)}

    ours, clusters = pins(ROOT / "requirements.lock"), pins(DEPLOY / "cluster.lock")
    assert not ours.keys() & clusters.keys()
    both = ours | clusters
    for text in requires("ray") or []:
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": "default"}):
            assert need.specifier.contains(both[re.sub(r"[-_.]+", "-", need.name).lower()], prereleases=True), text


def test_the_slurm_script_is_sound() -> None:
    script = DEPLOY / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [shellcheck, "--enable=all", "--exclude=SC2250,SC2310,SC2312", script], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
