"""The demo against S3, MLflow over PostgreSQL and a Ray that wants a token; what others get to see of it."""

from __future__ import annotations

import json
import math
import secrets
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.processes import command_line
from infra.storage import open_store
from infra.tracking.client import Tracking, connect
from tests.dev_services import LOOPBACK, answer_of
from tests.services.conftest import ROOT, Machine, asked

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # the first test waits for the job

DASHBOARDS = sorted((ROOT / "infra" / "dashboards").glob("*.json"))
NO_TOKEN = {"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN_PATH": "/nonexistent"}


def test_the_demo_is_recorded_and_becomes_champion(trained: Machine):
    client = connect(Tracking(uri=trained.environment["MLFLOW_TRACKING_URI"]))
    champion = client.get_model_version_by_alias("mnist5k-resnet20", "champion")
    assert champion.run_id
    run = client.get_run(champion.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/accuracy"] > 0.9
    assert "registered  models:/mnist5k-resnet20/1 (champion)" in trained.output
    assert not list(trained.services.rglob("mlflow.db"))  # its runs are in PostgreSQL


def jobs(machine: Machine) -> list[str]:
    token = {"Authorization": f"Bearer {machine.secrets['token']}"}
    status, body = answer_of(f"{machine.dashboard}/api/jobs/", token)
    assert status == 200
    return [job["submission_id"] for job in json.loads(body)]


@pytest.mark.parametrize("wrong", ["no token", "a wrong token"])
def test_who_has_not_the_token_submits_no_job(machine: Machine, tmp_path: Path, wrong: str):
    (tmp_path / "token").write_text(secrets.token_hex(32))
    changed = NO_TOKEN if wrong == "no token" else {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    before, proof = jobs(machine), tmp_path / "proof"
    done = machine.ray("job", "submit", "--", "touch", str(proof), **changed)
    assert done.returncode != 0
    assert "AuthenticationError" in done.stderr.splitlines()[-1] or "token" in done.stderr.splitlines()[-1], done.stderr
    header = {"Authorization": f"Bearer {(tmp_path / 'token').read_text()}"} if wrong == "a wrong token" else {}
    job = json.dumps({"entrypoint": f"touch {proof}"}).encode()
    for path in ("/api/jobs/", "/api/job_agent/jobs/"):
        status, _ = answer_of(machine.dashboard + path, {"Content-Type": "application/json", **header}, job)
        assert status in (401, 403, 404, 405), path
    assert answer_of(f"{machine.dashboard}/api/jobs/", header)[0] in (401, 403)
    assert jobs(machine) == before
    assert not proof.exists()


def test_who_has_not_the_token_joins_no_cluster(machine: Machine, tmp_path: Path):
    (tmp_path / "token").write_text(secrets.token_hex(32))
    gcs = (machine.session.parent / "ray_current_cluster").read_text().strip()
    program = f"import ray; ray.init(address={gcs!r}); print('joined')"
    environment = {**machine.environment, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0 and "joined" not in done.stdout
    assert "Unauthenticated" in done.stderr or "token" in done.stderr


def test_ray_listens_on_loopback_only_while_it_trains(trained: Machine):
    names = {name for name, _ in trained.listening}
    assert names >= {"raylet", "gcs_server"}
    assert any("RayTrainWorker" in name for name in names)  # with torch's rendezvous, and gloo
    assert {(name, address) for name, address in trained.listening if address not in LOOPBACK} == set()


def test_secrets_are_seen_nowhere(trained: Machine, monkeypatch: pytest.MonkeyPatch):
    for key, value in trained.environment.items():
        monkeypatch.setenv(key, value)
    places = dict(_places(trained))
    assert {place.partition(" ")[0] for place in places} >= {"output", "log", "jobs", "run", "object", "process"}
    seen = {
        (name, place) for name, secret in trained.secrets.items() for place, text in places.items() if secret in text
    }
    assert seen == set()


def _places(machine: Machine) -> Iterator[tuple[str, str]]:
    """Everything that is read by others than its owner: what it is, and its text."""
    yield "output", machine.output
    for folder in (machine.session.resolve() / "logs", machine.services):
        for file in (each for each in folder.rglob("*") if each.suffix in (".log", ".out", ".err", ".yml", ".html")):
            yield f"log {file}", file.read_text(errors="replace")
    yield (
        "jobs",
        answer_of(f"{machine.dashboard}/api/jobs/", {"Authorization": f"Bearer {machine.secrets['token']}"})[1],
    )
    client = connect(Tracking(uri=machine.environment["MLFLOW_TRACKING_URI"]))
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            yield f"run {run.info.run_id}", json.dumps({"params": run.data.params, "tags": run.data.tags})
    store = open_store("s3://resnet-ray")
    for name, _ in store.list():
        if not name.startswith("data/"):
            yield f"object {name}", store.read(name).decode(errors="replace")
    for process in psutil.process_iter():
        yield f"process {process.pid}", command_line(process)


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda file: file.stem)
def test_every_query_of_a_dashboard_finds_data(prometheus: str, trained: Machine, board: Path):
    panels = json.loads(board.read_text())["panels"]
    found = {}
    for panel in panels:
        for target in panel["targets"]:
            span = {"query": target["expr"], "start": trained.began, "end": time.time(), "step": 5}
            answer = asked(f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(span)}")
            assert answer["status"] == "success", (panel["title"], answer)
            found[target["expr"]] = [float(value) for line in answer["data"]["result"] for _, value in line["values"]]
    assert len(found) >= 10
    assert [query for query, values in found.items() if not any(map(math.isfinite, values))] == []


def test_metrics_tell_what_the_run_did(prometheus: str, trained: Machine):
    """Up to some seconds before its end: Ray's workers export every 3 s, and are scraped every 5."""

    client = connect(Tracking(uri=trained.environment["MLFLOW_TRACKING_URI"]))
    run = client.get_model_version_by_alias("mnist5k-resnet20", "champion").run_id
    assert run
    steps = {point.step: point.timestamp for point in client.get_metric_history(run, "train/loss")}
    seen = max(step for step, at in steps.items() if at < max(steps.values()) - 10_000)
    assert seen >= 50

    def last(query: str) -> float:
        at = urllib.parse.urlencode({"query": f"max(max_over_time({query}[15m]))"})
        return float(asked(f"{prometheus}/api/v1/query?{at}")["data"]["result"][0]["value"][1])

    assert seen <= last('ray_resnet_ray_train_step{run="demo"}') <= 250
    assert last('ray_resnet_ray_train_workers{run="demo"}') == 2
    assert last('ray_resnet_ray_held_out_accuracy{run="demo"}') > 0.9
    assert 32 * seen <= last('ray_resnet_ray_train_images_total{run="demo",rank="0"}') <= 32 * 250


def test_the_page_of_dashboards_is_served_and_draws(prometheus: str, tmp_path: Path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    url = f"{prometheus}/consoles/dashboards.html"
    done = subprocess.run(
        [*command, "--virtual-time-budget=8000", "--dump-dom", url], capture_output=True, text=True, timeout=200
    )
    titles = [panel["title"] for board in DASHBOARDS for panel in json.loads(board.read_text())["panels"]]
    assert [title for title in titles if f"<figcaption>{title}</figcaption>" not in done.stdout] == []
    assert done.stdout.count("<polyline") >= len(titles)
    assert ">no data yet<" not in done.stdout
