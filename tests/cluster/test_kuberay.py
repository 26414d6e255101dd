"""The KubeRay manifests set only what the operator knows, with Kubernetes' own schema for pods, and ask for the token.

With KUBERAY_CRDS=FOLDER of a checkout's `ray-operator/config/crd/bases`, the operator's CRDs themselves are the judge.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from infra.capacity import NODE_TYPES
from tests.cluster.kuberay_fields import wrong_fields
from tests.mlflow_server import a_free_port

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "infra/kuberay").glob("ray*.yaml"))
MLFLOW = ROOT / "infra/kuberay/mlflow.yaml"
# What EKS leaves to pods of these machines, in CPUs and GiB: the kubelet keeps 80m to 110m of the CPUs, 255 MiB and
# 11 MiB for each pod that the machine may have, and 100 MiB for evictions; daemon sets take 300m and 1 GiB, as a guess.
ROOM = {"gpu": (15.5, 56.0), "ingest": (15.5, 27.0), "head": (3.6, 13.0)}
AUTOSCALER = (0.5, 0.5)  # the container that KubeRay puts beside a head
KUBERNETES = "1.31"
CRDS = os.environ.get("KUBERAY_CRDS", "")


def manifest(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(file.read_text())
    return loaded


def cluster_of(content: dict[str, Any]) -> dict[str, Any]:
    spec = content["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


def wrong_pods(pods: list[tuple[str, Any]]) -> list[str]:
    judge = pytest.importorskip("kubernetes_validate", reason="the package kubernetes-validate is not installed")
    wrong = []
    for path, template in pods:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "any"}, **copy.deepcopy(template)}
        try:
            judge.validate(pod, KUBERNETES, strict=True)
        except judge.ValidationError as error:
            wrong.append(f"{path}.{'.'.join(map(str, error.path))}: {error.message}")
    return wrong


def test_there_is_one_of_each() -> None:
    kinds = sorted(manifest(file)["kind"] for file in FILES)
    assert kinds == ["RayCluster", "RayJob", "RayService"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_operator_knows_every_field(file: Path) -> None:
    content = manifest(file)
    assert content["apiVersion"] == "ray.io/v1"
    wrong, pods = wrong_fields(content["kind"], content["spec"])
    assert wrong == [] and len(pods) >= 2
    assert wrong_pods(pods) == []


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (("spec", "authOption"), {"mode": "token"}),
        (("spec", "authOptions", "mode"), "tokens"),
        (("spec", "enableInTreeAutoscaling"), "yes"),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "workerGroupSpecs", 0, "minReplica"), 1),
    ],
)
def test_what_it_does_not_know_is_found(where: tuple[Any, ...], what: object) -> None:
    content = manifest(ROOT / "infra/kuberay/raycluster.yaml")
    place = content
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = what
    assert len(wrong_fields("RayCluster", content["spec"])[0]) == 1


def test_a_pod_that_kubernetes_does_not_know_is_found() -> None:
    content = manifest(ROOT / "infra/kuberay/raycluster.yaml")
    content["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image_"] = "x"
    assert len(wrong_pods(wrong_fields("RayCluster", content["spec"])[1])) == 1


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRDS names no folder of the operator's CRDs")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_operators_own_schema_accepts_it(file: Path) -> None:
    content = manifest(file)
    crd = yaml.safe_load(Path(CRDS, f"ray.io_{content['kind'].lower()}s.yaml").read_text())
    (version,) = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
    jsonschema.validate(content, closed(version["schema"]["openAPIV3Schema"]))


def closed(schema: Any) -> Any:
    """The schema with unknown fields refused, as the API server warns of or drops them."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_clusters_ask_for_the_token_and_run_the_locked_ray(file: Path) -> None:
    cluster = cluster_of(manifest(file))
    assert cluster["authOptions"] == {"mode": "token"}
    locked = re.search(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None and cluster["rayVersion"] == locked[1]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_drivers_are_told_what_the_autoscaler_may_bring(name: str) -> None:
    """As Ray's autoscaler itself reads the manifest."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    cluster = cluster_of(manifest(ROOT / f"infra/kuberay/{name}.yaml"))
    assert cluster["enableInTreeAutoscaling"] is True
    resource = {"metadata": {"name": name, "namespace": "default"}, "spec": cluster}
    types = autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    (told,) = [json.loads(each["value"]) for each in head["env"] if each["name"] == NODE_TYPES]
    for each in types.values():
        each["resources"].pop("memory")
    assert told == {
        group["groupName"]: {key: types[group["groupName"]][key] for key in ("max_workers", "resources", "labels")}
        for group in cluster["workerGroupSpecs"]
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_labels_are_the_groups_own(file: Path) -> None:
    """The operator refuses a cluster with labels among `rayStartParams`, which its CRD cannot tell."""
    cluster = cluster_of(manifest(file))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["rayStartParams"].keys().isdisjoint({"labels", "resources"})


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_a_head_that_is_deleted_gives_its_run_time_to_commit(name: str) -> None:
    pod = cluster_of(manifest(ROOT / f"infra/kuberay/{name}.yaml"))["headGroupSpec"]["template"]["spec"]
    told = {each["name"]: each.get("value", "") for each in pod["containers"][0]["env"]}
    stop, end = (float(told[key]) for key in ("RAY_JOB_STOP_WAIT_TIME_S", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"))
    assert stop <= end < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_container_is_root_or_holds_a_secret(file: Path) -> None:
    pods = wrong_fields(manifest(file)["kind"], manifest(file)["spec"])[1]
    for _, pod in pods:
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert not [each for each in container.get("env", []) if re.search("SECRET|TOKEN|PASSWORD", each["name"])]


def test_the_service_names_an_application_and_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    content = manifest(ROOT / "infra/kuberay/rayservice.yaml")
    (served,) = yaml.safe_load(content["spec"]["serveConfigV2"])["applications"]
    module, _, function = served["import_path"].partition(":")
    built = getattr(importlib.import_module(module), function)(served["args"])
    (serving,) = built._bound_deployment.init_args
    assert (serving.models.uri, serving.replicas) == (served["args"]["model"], 2)
    assert serving.models.tracking.uri == "http://mlflow:5000"


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_the_notice_fits_in_the_grace_period(name: str) -> None:
    for group in cluster_of(manifest(ROOT / f"infra/kuberay/{name}.yaml"))["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        notice = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert notice[:4] == ["python", "-m", "infra.notice", "--now"]
        assert float(notice[5]) + 10 <= pod["terminationGracePeriodSeconds"]


def size(quantity: str) -> float:
    """CPUs, or GiB."""
    return float(quantity.removesuffix("Gi"))


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_pods_fit_on_the_machines_that_the_file_names(name: str) -> None:
    cluster = cluster_of(manifest(ROOT / f"infra/kuberay/{name}.yaml"))
    head = cluster["headGroupSpec"] | {"groupName": "head"}
    for group in (head, *cluster["workerGroupSpecs"]):
        beside = AUTOSCALER if group is head else (0.0, 0.0)
        (container,) = group["template"]["spec"]["containers"]
        asked = container["resources"]["requests"]
        cpus, memory = ROOM[group["groupName"]]
        assert size(asked["cpu"]) + beside[0] <= cpus
        assert size(asked["memory"]) + beside[1] <= memory


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_gpu_pods_tolerate_the_taint_of_gpu_nodes_and_ranks_find_each_other(name: str) -> None:
    for group in cluster_of(manifest(ROOT / f"infra/kuberay/{name}.yaml"))["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        tolerated = [each["key"] for each in pod.get("tolerations", [])]
        assert tolerated == (["nvidia.com/gpu"] if "nvidia.com/gpu" in container["resources"]["limits"] else [])
        told = {each["name"]: each["value"] for each in container["env"]}
        assert told["GLOO_SOCKET_IFNAME"] == told["NCCL_SOCKET_IFNAME"] == "eth0"


def test_mlflow_is_what_the_settings_say(tmp_path: Path) -> None:
    """`http://mlflow:5000` is a service whose pod answers to that name; Kubernetes' own schema knows every field."""
    judge = pytest.importorskip("kubernetes_validate", reason="the package kubernetes-validate is not installed")
    parts = {each["kind"]: each for each in yaml.safe_load_all(MLFLOW.read_text())}
    assert parts.keys() == {"PersistentVolumeClaim", "Deployment", "Service", "NetworkPolicy"}
    for part in parts.values():
        judge.validate(part, KUBERNETES, strict=True)
    service, pod = parts["Service"], parts["Deployment"]["spec"]["template"]
    assert service["metadata"]["name"] == "mlflow" and service["spec"]["ports"][0]["port"] == 5000
    labels = pod["metadata"]["labels"]
    assert service["spec"]["selector"] == labels == parts["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
    (container,) = pod["spec"]["containers"]
    assert "--allowed-host=mlflow:5000" in container["args"]
    assert container["volumeMounts"][0]["mountPath"] == container["command"][3] == "/mlflow"
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    images = {re.findall(r"SET-YOUR-REGISTRY\S+", file.read_text())[0] for file in (*FILES, MLFLOW)}
    assert len(images) == 1


@pytest.mark.faults
def test_the_command_of_the_mlflow_pod_serves_by_that_name(tmp_path: Path) -> None:
    """As the kubelet runs it, on another port and folder; a name that nobody allowed is refused."""
    (pod,) = [each for each in yaml.safe_load_all(MLFLOW.read_text()) if each["kind"] == "Deployment"]
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    storage, port = tmp_path / "bucket", a_free_port()
    words = [*container["command"], *container["args"]]
    command = [word.replace("$(RESNET_RAY_STORAGE)", str(storage)).replace("0.0.0.0", "127.0.0.1") for word in words]
    command[0], command[3], command[5] = sys.executable, str(tmp_path / "mlflow"), str(port)
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None and "MLFLOW_TRACKING_URI" in server.stdout.readline()
        answers = {}
        for host in ("mlflow:5000", "elsewhere:5000"):
            url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get?experiment_id=0"
            try:
                answers[host] = urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host})).status
            except urllib.error.HTTPError as error:
                answers[host] = error.code
        assert answers == {"mlflow:5000": 200, "elsewhere:5000": 403}
    finally:
        server.terminate()
        server.communicate()
    assert server.returncode == 0
    assert list((storage / "mlflow-database/resnet-ray").glob("*.db.gz"))
