"""Refuses what a Kubernetes API server with KubeRay would refuse: unknown fields, wrong types, unknown values."""

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.34"


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_TEXT, _WHOLE, _FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_POD = {"type": "object"}  # checked by Kubernetes' own schema, see `_templates`

_WORKERS = _object(
    ("groupName", "minReplicas", "maxReplicas", "template"),
    groupName=_TEXT,
    replicas=_WHOLE,
    minReplicas=_WHOLE,
    maxReplicas=_WHOLE,
    idleTimeoutSeconds=_WHOLE,
    numOfHosts=_WHOLE,
    priority={"type": "integer"},
    suspend=_FLAG,
    rayStartParams=_TEXTS,
    resources=_TEXTS,
    labels=_TEXTS,
    template=_POD,
)
_HEAD = _object(
    ("template",),
    enableIngress=_FLAG,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    rayStartParams=_TEXTS,
    resources=_TEXTS,
    labels=_TEXTS,
    template=_POD,
)
_CLUSTER = _object(
    ("headGroupSpec",),
    rayVersion=_TEXT,
    authOptions=_object(mode={"enum": ["disabled", "token"]}, secretName=_TEXT, enableK8sTokenAuth=_FLAG),
    enableInTreeAutoscaling=_FLAG,
    autoscalerOptions={"type": "object"},
    upgradeStrategy=_object(type={"enum": ["Recreate", "None"]}),
    suspend=_FLAG,
    headServiceAnnotations=_TEXTS,
    headGroupSpec=_HEAD,
    workerGroupSpecs={"type": "array", "items": _WORKERS},
)
_RAYJOB = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata={"type": "object", "required": ["name"]},
    spec=_object(
        ("entrypoint", "rayClusterSpec"),
        entrypoint=_TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        suspend=_FLAG,
        backoffLimit=_WHOLE,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=_FLAG,
        ttlSecondsAfterFinished=_WHOLE,
        runtimeEnvYAML=_TEXT,
        jobId=_TEXT,
        metadata=_TEXTS,
        clusterSelector=_TEXTS,
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        entrypointResources=_TEXT,
        submitterConfig=_object(backoffLimit=_WHOLE),
        submitterPodTemplate=_POD,
        rayClusterSpec=_CLUSTER,
    ),
)
"""The fields of KubeRay 1.7.0's CRD rayjobs.ray.io/v1 that a manifest of ours may have; the others are for its status,
or for what we do not use."""


class RefusedError(Exception):
    """An API server would refuse it."""


def check(manifest: Mapping[str, Any]) -> None:
    """Raises RefusedError for a manifest that is wrong."""
    try:
        if manifest["apiVersion"].startswith("ray.io/"):
            jsonschema.validate(manifest, _RAYJOB)
            _check_rules(manifest)
            for template in _templates(manifest):
                wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
                kubernetes_validate.validate(wrapped, KUBERNETES, strict=True)
        else:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        raise RefusedError(f"{'/'.join(map(str, error.path))}: {error.message}") from error
    for pod in pods(manifest):
        _check_pod(pod)


def _check_rules(rayjob: Mapping[str, Any]) -> None:
    """What KubeRay's operator checks beyond the CRD (ValidateRayJobSpec, ValidateRayJobMetadata)."""
    spec = rayjob["spec"]
    if len(rayjob["metadata"]["name"]) > 47:
        raise RefusedError("the name of a RayJob has at most 47 characters")
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        raise RefusedError("a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended")
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        raise RefusedError("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")


def _check_pod(pod: Mapping[str, Any]) -> None:
    """What schemas do not know: a mount needs its volume."""
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in containers(pod):
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                raise RefusedError(f"container {container['name']} mounts the unknown volume {mount['name']}")


def _templates(manifest: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    spec = manifest.get("spec", {})
    if manifest["kind"] == "CronJob":
        yield spec["jobTemplate"]["spec"]["template"]
    if manifest["kind"] == "RayJob":
        yield spec["rayClusterSpec"]["headGroupSpec"]["template"]
        yield from (group["template"] for group in spec["rayClusterSpec"].get("workerGroupSpecs", []))
        if "submitterPodTemplate" in spec:
            yield spec["submitterPodTemplate"]


def pods(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The specs of the pods that a CronJob or a RayJob brings about."""
    return [template["spec"] for template in _templates(manifest)]


def containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The containers of a pod, the initial ones too."""
    return [*pod.get("initContainers", []), *pod["containers"]]
