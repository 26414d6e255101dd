"""The fields of KubeRay's resources that a manifest may set, and their types: a check derived from the operator's API.

From the API reference of KubeRay 1.6 (https://docs.ray.io/en/master/cluster/kubernetes/references/api.html, which the
operator generates from the same Go types as its CRDs). Deprecated fields are left out, so that using one fails. Pod
templates are Kubernetes' own and are checked by its schema.
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]

TEXT, NUMBER, FLAG, TEXTS, POD, ANY = "text", "number", "flag", "texts", "pod", "any"

_AUTOSCALER: Fields = {
    "version": ("v1", "v2"),
    "idleTimeoutSeconds": NUMBER,
    "upscalingMode": ("Default", "Aggressive", "Conservative"),
    "image": TEXT,
    "imagePullPolicy": ("Always", "Never", "IfNotPresent"),
    "resources": ANY,
    "env": ANY,
    "envFrom": ANY,
    "securityContext": ANY,
    "volumeMounts": ANY,
}
_HEAD: Fields = {
    "rayStartParams": TEXTS,
    "template": POD,
    "serviceType": ("ClusterIP", "NodePort", "LoadBalancer"),
    "enableIngress": FLAG,
    "headService": ANY,
    "labels": TEXTS,
    "resources": TEXTS,
}
_WORKERS: Fields = {
    "groupName": TEXT,
    "replicas": NUMBER,
    "minReplicas": NUMBER,
    "maxReplicas": NUMBER,
    "numOfHosts": NUMBER,
    "idleTimeoutSeconds": NUMBER,
    "rayStartParams": TEXTS,
    "template": POD,
    "scaleStrategy": ANY,
    "suspend": FLAG,
    "labels": TEXTS,
    "resources": TEXTS,
}
_CLUSTER: Fields = {
    "rayVersion": TEXT,
    "authOptions": {"mode": ("token", "disabled"), "secretName": TEXT, "enableK8sTokenAuth": FLAG},
    "enableInTreeAutoscaling": FLAG,
    "autoscalerOptions": _AUTOSCALER,
    "headGroupSpec": _HEAD,
    "workerGroupSpecs": [_WORKERS],
    "headServiceAnnotations": TEXTS,
    "gcsFaultToleranceOptions": ANY,
    "managedBy": TEXT,
    "suspend": FLAG,
}
_JOB: Fields = {
    "entrypoint": TEXT,
    "runtimeEnvYAML": TEXT,
    "submissionMode": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    "shutdownAfterJobFinishes": FLAG,
    "ttlSecondsAfterFinished": NUMBER,
    "backoffLimit": NUMBER,
    "activeDeadlineSeconds": NUMBER,
    "rayClusterSpec": _CLUSTER,
    "clusterSelector": TEXTS,
    "entrypointNumCpus": NUMBER,
    "entrypointResources": TEXT,
    "submitterPodTemplate": POD,
    "submitterConfig": ANY,
    "jobId": TEXT,
    "metadata": TEXTS,
    "suspend": FLAG,
}
_SERVICE: Fields = {
    "upgradeStrategy": {"type": ("NewCluster", "None", "NewClusterWithIncrementalUpgrade")},
    "excludeHeadPodFromServeSvc": FLAG,
    "serveConfigV2": TEXT,
    "rayClusterConfig": _CLUSTER,
    "serveService": ANY,
}
SPECS: dict[str, Fields] = {"RayCluster": _CLUSTER, "RayJob": _JOB, "RayService": _SERVICE}
REQUIRED = {"headGroupSpec": ("template",), "workerGroupSpecs": ("groupName", "template", "maxReplicas", "minReplicas")}


def wrong_fields(kind: str, spec: Any) -> tuple[list[str], list[tuple[str, Any]]]:
    """What is wrong with a spec, and the pod templates in it with where they stand."""
    wrong: list[str] = []
    pods: list[tuple[str, Any]] = []
    _walk(spec, SPECS[kind], "spec", wrong, pods)
    return wrong, pods


def _walk(value: Any, wanted: Any, path: str, wrong: list[str], pods: list[tuple[str, Any]]) -> None:
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            wrong.append(f"{path} is no object")
            return
        wrong.extend(f"{path}.{key} is no field" for key in value.keys() - wanted.keys())
        required = REQUIRED.get(path.rsplit(".", 1)[-1].partition("[")[0], ())
        wrong.extend(f"{path}.{key} is missing" for key in required if key not in value)
        for key in value.keys() & wanted.keys():
            _walk(value[key], wanted[key], f"{path}.{key}", wrong, pods)
    elif isinstance(wanted, list):
        for place, each in enumerate(value if isinstance(value, list) else [None]):
            _walk(each, wanted[0], f"{path}[{place}]", wrong, pods)
    elif wanted == POD:
        pods.append((path, value))
    elif not _fits(value, wanted):
        wrong.append(f"{path} = {value!r} is not {wanted}")


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, tuple):
        return value in wanted
    if wanted == TEXTS:
        return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    kinds: dict[str, Any] = {TEXT: str, NUMBER: int, FLAG: bool}
    return wanted == ANY or (isinstance(value, kinds[wanted]) and (wanted == FLAG or not isinstance(value, bool)))
