"""Models registered, evaluated, used for prediction and served by jobs, on machines made of namespaces.

MLflow listens on the head's loopback alone, and the head computes nothing: what computes is on the worker hosts, which
get models from the driver. The tests share one cluster and go in this order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.deployed import STORAGE, Cluster, Job, deployed
from tests.cluster.hosts import Host, missing
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]
RUN, MODEL = f"{STORAGE}/runs/served", "models:/mnist5k-resnet20"
PORT = 8000
SUBMIT = "ray job submit --working-dir . --runtime-env infra/runtime_env.yaml -- python pipelines/"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with deployed(tmp_path_factory.mktemp("cluster")) as made:
        yield made


def where(cluster: Cluster, kind: str, name: str) -> list[str]:
    """The nodes on which Ray's tasks or actors of a name have been, as Ray's dashboard lists them."""
    field = "name" if kind == "tasks" else "class_name"
    line = f"ray list {kind} --format json --detail --limit 10000 --filter '{field}={name}' 2>/dev/null"
    return [each["node_id"] for each in json.loads(cluster.on_head(line)) if each["node_id"]]


def own_node(cluster: Cluster, host: Host) -> str:
    line = "ray list nodes --format json --detail 2>/dev/null"
    return next(each["node_id"] for each in json.loads(cluster.on_head(line)) if each["node_ip"] == host.address)


def test_registration_scores_on_a_worker_host(cluster: Cluster) -> None:
    line = f"{SUBMIT}train.py mnist5k --set run.name=served --set schedule.length=2 --set run.keep_best=2"
    output = cluster.submit(line, "train").finished()
    assert f"{MODEL}/1" in output and "(champion)" in output
    scored = where(cluster, "tasks", "_task")
    assert len(scored) == 1 and own_node(cluster, cluster.head) not in scored


def test_evaluation_scores_a_run_and_its_version_alike(cluster: Cluster) -> None:
    output = cluster.submit(f"{SUBMIT}evaluate.py {RUN} {MODEL}@champion", "evaluate").finished()
    assert "scoring on CPUs" in output
    scored = where(cluster, "tasks", "_task")
    assert len(scored) == 3 and own_node(cluster, cluster.head) not in scored
    assert "images      1,000" in output and "both predict the same class on 100.00%" in output


def test_predict_writes_parquet_from_the_worker_hosts(cluster: Cluster) -> None:
    out = f"{STORAGE}/predictions"
    line = f"{SUBMIT}predict.py {STORAGE}/data/mnist5k --split test --out {out} --file-rows 256"
    output = cluster.submit(line, "predict").finished()
    assert f"model: {MODEL}/1 (champion)" in output
    assert f"with {MODEL}/1 on CPUs" in output
    assert f"1,000 images in 2 files at {out}" in output
    actors = where(cluster, "actors", "MapWorker(MapBatches(_OnCpu))")
    assert actors and own_node(cluster, cluster.head) not in actors


def ask(host: Host, server: Host) -> dict[str, Any]:
    """What the server answers to a black picture, asked from a host."""
    picture = json.dumps([[[0, 0, 0]] * 28] * 28)
    send = f"curl -sf -d @- -H 'Content-Type: application/json' http://{server.address}:{PORT}/invocations"
    done = host.run(f"""printf '{{"instances": [%s]}}' '{picture}' | {send}""", check=False)
    answer: dict[str, Any] = json.loads(done.stdout or "{}")
    return answer


def answering(cluster: Cluster, job: Job, version: int) -> None:
    """Until a worker host is answered by that version."""

    def there() -> bool:
        return bool(ask(cluster.workers[0], cluster.head).get("model", {}).get("version") == version)

    wait_until(there, 60, f"answer of version {version}", job.output, every=0.5)


def test_serve_follows_the_champion_on_the_worker_hosts(cluster: Cluster) -> None:
    line = f"{SUBMIT}serve.py --host {cluster.head.address} --port {PORT} --replicas 2 --poll-s 1"
    job = cluster.submit(line, "serve")
    job.await_line(rf"serving {MODEL}/1 at http://{re.escape(cluster.head.address)}:{PORT}/invocations", 240)
    job.await_line("computing on CPUs, up to 32 images at once", 60)
    replicas = where(cluster, "actors", "ServeReplica:resnet-ray:Classifier")
    assert len(replicas) == 2 and own_node(cluster, cluster.head) not in replicas
    answering(cluster, job, version=1)

    best = json.loads(cluster.on_head(f"python -m tests.cluster.probe {RUN}"))["finished"]["best_step"]
    other = next(step for step in reversed(cluster.run_folder("served")["steps"]) if step != best)
    output = cluster.submit(f"{SUBMIT}register.py {RUN} --step {other}", "register").finished()
    assert f"{MODEL}/2: checkpoint {other}" in output
    if "(champion)" not in output:
        cluster.submit(f"{SUBMIT}register.py --promote mnist5k-resnet20 2", "promote").finished()
    answering(cluster, job, version=2)
    health = cluster.workers[1].run(f"curl -sf http://{cluster.head.address}:{PORT}/health").stdout
    assert json.loads(health) == {"status": "ok", "model": f"{MODEL}/2", "trouble": None}

    cluster.user("ray job stop serve", timeout=150)
    job.await_line("stopping: requests that are under way get their answers", 30)
