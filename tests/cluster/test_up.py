"""`ray up`, the literal job, a host that dies, a notice, a stop and `ray down`, on three machines made of namespaces.

The tests share one cluster and go in this order.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.deployed import DASHBOARD, FILE, MLFLOW, Cluster, deployed
from tests.cluster.hosts import missing
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]
SAMPLES, BATCH = 3600, 64
NOTICE_S = 25


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with deployed(tmp_path_factory.mktemp("cluster")) as made:
        yield made


def exact(told: dict[str, Any], epochs: int) -> None:
    """Every sample of every epoch once, by the ledger of the last checkpoint."""
    assert told["epochs"] == [[SAMPLES, 0]] * epochs
    assert told["samples"] == SAMPLES * epochs and told["finished"]["step"] == SAMPLES * epochs // BATCH


def test_the_head_computes_nothing_and_only_loopback_answers_for_it(cluster: Cluster) -> None:
    status = cluster.user("ray exec infra/local-cluster.yaml 'ray status'")
    assert re.search(r"/8\.0 CPU", status)  # 4 of each worker, none of the head
    cluster.head.run("until ss -ltnH | grep -q ':5000 '; do sleep 0.5; done", timeout=200)  # MLflow starts after Ray
    listening = cluster.head.run("ss -ltnH").stdout
    for port in (8265, 5000):  # dashboard and jobs, MLflow
        assert re.findall(rf"(\S+):{port}\s", listening) == ["127.0.0.1"]


def test_without_the_token_nobody_submits_a_job(cluster: Cluster) -> None:
    for token in ("", "0" * 64):
        answer = cluster.laptop.run(
            "cd resnet-ray; curl -s -o /dev/null -w '%{http_code}' -X POST http://127.0.0.1:8265/api/jobs/ "
            f"-H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' -d '{{\"entrypoint\": \"id\"}}'"
        )
        assert answer.stdout in ("401", "403")


def test_the_literal_job_trains_on_two_hosts_and_registers_a_champion(cluster: Cluster) -> None:
    output = cluster.submit("ray job submit -- python pipelines/train.py", "literal").finished()
    assert "training on 2 worker(s)" in output
    run = re.search(r"MLflow run  http://127\.0\.0\.1:5000/#/experiments/\d+/runs/(\w+)", output)
    assert run and "(champion)" in output
    asked = "registered-models/alias?name=mnist5k-resnet20&alias=champion"
    with cluster.tunnel(MLFLOW, "-p 5000 --remote-port 5000"):  # the run's link leads there
        champion = json.loads(cluster.user(f"curl -s 'http://127.0.0.1:5000/api/2.0/mlflow/{asked}'"))
    assert champion["model_version"]["run_id"] == run[1]
    metrics = json.loads(cluster.on_head(f"curl -s 'http://127.0.0.1:5000/api/2.0/mlflow/runs/get?run_id={run[1]}'"))
    keys = {metric["key"] for metric in metrics["run"]["data"]["metrics"]}
    assert {"system/cpu_utilization_percentage", "system/node-1/cpu_utilization_percentage"} <= keys  # two hosts
    (name,) = re.findall(r"run folder  s3://resnet-ray/runs/(\S+)", output)
    exact(cluster.run_folder(name), epochs=8)


def test_a_stopped_job_leaves_a_checkpoint_and_goes_on_after_an_upgrade(cluster: Cluster) -> None:
    line = (
        "ray job submit --working-dir . --runtime-env infra/runtime_env.yaml -- python pipelines/train.py mnist5k "
        "--set run.name=stopped --set schedule.length=12 --set run.checkpoint_every_steps=1000 --set run.register_as="
    )
    job = cluster.submit(line, "stopped")
    job.await_line(r"step [1-9]\d*/675", 180)
    cluster.user("ray job stop stopped", timeout=150)
    step = int(job.await_line(r"checkpoint of step (\d+) committed before stopping", 60)[1])
    assert cluster.run_folder("stopped")["steps"][-1] == step
    before, served = cluster.sessions(), cluster.on_head("pgrep -f '^python -m infra.head'")
    cluster.laptop.run("echo '# newer' >> resnet-ray/infra/__init__.py")
    cluster.up()
    cluster.await_answer(DASHBOARD)
    assert all(session not in before for session in cluster.sessions())
    assert cluster.on_head("pgrep -f '^python -m infra.head'") not in ("", served)
    for host in (cluster.head, *cluster.workers):
        assert host.run("tail -n 1 resnet-ray/infra/__init__.py").stdout == "# newer\n"
    output = cluster.submit(line, "again").finished()
    assert f"from step {step}" in output
    exact(cluster.run_folder("stopped"), epochs=12)


def test_a_host_that_dies_in_mid_run_costs_no_sample(cluster: Cluster) -> None:
    job = cluster.submit(
        "ray job submit -- python pipelines/train.py mnist5k --set run.name=plug --set schedule.length=12 "
        "--set run.checkpoint_every_steps=20 --set run.register_as=",
        "plug",
    )
    wait_until(lambda: max(cluster.run_folder("plug")["steps"], default=0) >= 40, 240, "checkpoint", job.output, 5)
    cluster.workers[-1].pull_the_plug()
    output = job.finished()
    assert "resuming from the last checkpoint" in output
    exact(cluster.run_folder("plug"), epochs=12)


def test_a_notice_loses_no_step_and_the_run_grows_again_when_the_host_is_back(cluster: Cluster) -> None:
    host = cluster.reboot(cluster.workers[-1])
    wait_until(lambda: cluster.nodes() == 3, 240, "second worker", every=3)
    job = cluster.submit(
        "ray job submit -- python pipelines/train.py mnist5k --set run.name=elastic --set schedule.length=32 "
        "--set run.num_workers=[1,2] --set run.cpus_per_worker=3 --set run.checkpoint_every_steps=100 "
        "--set data.ordered=true "
        "--set run.register_as=",
        "elastic",
    )
    job.await_line(r"training on 2 worker\(s\)", 180)
    job.await_line(r"step [1-9]\d+/1800", 60)
    told = time.monotonic()
    host.run("pkill -TERM -f '[i]nfra.notice'")
    step = int(job.await_line(r"checkpoint of step (\d+) committed before stopping", NOTICE_S)[1])
    assert time.monotonic() - told < NOTICE_S
    time.sleep(max(0.0, NOTICE_S - (time.monotonic() - told)))
    host.pull_the_plug()
    job.await_line(rf"training on 1 worker\(s\) in \S+ from step {step}\n", 150)  # not one step before
    cluster.reboot(host)
    job.await_line(r"training on 1 worker(?s:.*)training on 2 worker\(s\)", 300)
    job.finished()
    exact(cluster.run_folder("elastic"), epochs=32)


def test_ray_down_leaves_nothing_running(cluster: Cluster) -> None:
    cluster.laptop.run("pkill -INT -f '[r]ay dashboard'; pkill -x ssh", check=False)  # the tunnel
    cluster.user(f"ray down -y {FILE}", timeout=120)

    def left() -> str:
        lines = [
            f"{host.name}: {line}"
            for host in (cluster.head, *cluster.workers)
            for line in host.run("ps -eo user,args --no-headers").stdout.splitlines()
            if not re.search(r"sshd|ps -eo|bash -c export PATH=", line)
        ]
        return "\n".join(lines)

    # `ray down` stops the head's Ray; a worker's ends after a minute without its head, and infra.notice ends the rest
    wait_until(lambda: left() == "", 180, "end of everything", left)
    kept = cluster.head.run("ls resnet-ray-state/mlflow/mlflow.db").stdout
    assert Path(kept.strip()).name == "mlflow.db"
