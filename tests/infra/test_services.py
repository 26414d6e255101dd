"""S3, MLflow and Prometheus as `make services` starts them: reachable from here alone, and gone after the stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import psutil
import pytest

from benchmarks.processes import command_line
from infra.errors import UserError
from infra.services import Services
from infra.storage import open_store
from infra.subprocesses import is_free, pick_port
from infra.tracking.client import Tracking, connect
from tests.dev_services import LOOPBACK, answer_of, exported, started_services

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_BACKEND_STORE_URI", raising=False)
        with started_services(tmp_path_factory.mktemp("services")) as services:
            yield services


def processes_of(services: Services) -> list[psutil.Process]:
    record = json.loads((services.folder / "processes.json").read_text())
    first = [psutil.Process(pid) for pid, _ in record.values()]
    return list({child.pid: child for each in first for child in [each, *each.children(recursive=True)]}.values())


def runs(process: psutil.Process) -> bool:
    """A process that ended is its parent's, which here is this test, to forget."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_artifacts_reach_s3_through_the_server_alone(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    known = exported(services)
    client = connect(Tracking(uri=known["MLFLOW_TRACKING_URI"]))  # a client that knows nothing of S3
    run = client.create_run(client.create_experiment("services"))
    (tmp_path / "note.txt").write_text("kept in the bucket")
    client.log_artifact(run.info.run_id, str(tmp_path / "note.txt"))
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    for key, value in known.items():
        monkeypatch.setenv(key, value)
    bucket = open_store("s3://resnet-ray/mlflow")
    assert bucket.read(f"{run.info.experiment_id}/{run.info.run_id}/artifacts/note.txt") == b"kept in the bucket"


@pytest.mark.parametrize(
    "path", ["/", "/api/2.0/mlflow/experiments/search?max_results=1", "/ajax-api/2.0/mlflow/runs/get"]
)
@pytest.mark.parametrize("host", ["evil.example", "evil.example:5000", "10.0.0.1", "127.0.0.1.evil.example"])
def test_mlflow_gives_nothing_to_a_foreign_host_header(services: Services, host: str, path: str):
    url = exported(services)["MLFLOW_TRACKING_URI"]
    assert answer_of(f"{url}/health", {"Host": url.removeprefix("http://")}) == (HTTPStatus.OK, "OK")
    assert answer_of(url + path, {"Host": host}) == (
        HTTPStatus.FORBIDDEN,
        "Invalid Host header - possible DNS rebinding attack detected",
    )


def test_everything_listens_on_loopback_only(services: Services):
    found = [
        (process.name(), connection.laddr.ip)
        for process in processes_of(services)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {name for name, _ in found} >= {"weed"}
    assert [each for each in found if each[1] not in LOOPBACK] == []


def test_secrets_are_their_owners_alone(services: Services):
    secret = exported(services)["AWS_SECRET_ACCESS_KEY"]
    assert (services.folder.stat().st_mode & 0o777, services.environment.stat().st_mode & 0o777) == (0o700, 0o600)
    assert [process.pid for process in processes_of(services) if secret in command_line(process)] == []
    logs = [file for file in services.folder.rglob("*.log") if secret in file.read_text(errors="replace")]
    assert logs == []
    assert secret not in services.status()


def test_mlflow_refuses_pickles_in_every_process(services: Services):
    servers = [process for process in processes_of(services) if "mlflow" in command_line(process)]
    assert servers
    assert {process.environ().get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION") for process in servers[1:]} <= {"false"}


def test_a_second_start_changes_nothing(services: Services):
    before = services.environment.read_text()
    services.start()
    assert services.environment.read_text() == before
    with pytest.raises(UserError, match="run already: `make services-stop SERVICES="):
        services.run()


def test_a_port_that_is_taken_is_passed_over_or_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        assert pick_port(None, port) > port
        with pytest.raises(UserError, match=f"port {port} is taken"):
            pick_port(port, 5000)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_stop_leaves_nothing(tmp_path: Path, how: signal.Signals):
    """Also where whoever held the services was killed and could end none of them."""
    folder = tmp_path / "services"
    services = Services(folder=folder)
    try:
        services.start()
    except UserError as error:
        pytest.skip(str(error))
    (folder / "s3" / "mine").mkdir()
    processes = processes_of(services)
    if how == signal.SIGKILL:
        holder = json.loads((folder / "processes.json").read_text())["services"][0]
        os.kill(holder, signal.SIGKILL)
    command = [sys.executable, "-m", "infra.services", "stop", "--folder", str(folder)]
    subprocess.run(command, check=True, timeout=120)
    assert len(processes) >= 4
    assert [process for process in processes if runs(process)] == []
    assert not services.environment.exists() and not (folder / "processes.json").exists()
    assert (folder / "s3" / "mine").is_dir()
    with pytest.raises(UserError, match=r"no services run .*: `make services SERVICES="):
        services.status()
