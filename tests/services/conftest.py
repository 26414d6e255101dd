"""One machine as a cluster: the services, PostgreSQL, and a Ray head that wants a token; one job has run on it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.processes import command_line
from infra.prometheus_server import installed
from tests.dev_services import answer_of, exported, started_services
from tests.mlflow_server import a_free_port
from tests.services.postgres import a_password, serve_postgres
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
_FOREIGN = ("AWS_", "RAY_", "MLFLOW_")  # what this machine's own settings of the services begin with


@dataclass(frozen=True, kw_only=True)
class Machine:
    environment: Mapping[str, str]  # of whoever may use it: addresses, keys and the token
    secrets: Mapping[str, str]  # what nobody else may see, by name
    dashboard: str
    session: Path  # Ray's logs
    services: Path  # the services' state
    output: str = ""  # of the job
    began: float = 0.0
    ended: float = 0.0
    listening: frozenset[tuple[str, str]] = frozenset()  # names of Ray's processes and addresses, while it ran

    def ray(self, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        """Ray's command, with the environment changed; an empty value takes a variable away."""
        environment = {key: value for key, value in {**self.environment, **changed}.items() if value}
        return subprocess.run([RAY, *arguments], env=environment, capture_output=True, text=True, timeout=280)

    def ray_processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if str(self.session.parent) in command_line(process)]

    def listeners(self) -> set[tuple[str, str]]:
        """(name of a process, address that it listens on) of Ray and of what it started."""
        found = set()
        for first in self.ray_processes():
            try:
                for process in [first, *first.children(recursive=True)]:
                    sockets = [each for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
                    found |= {(process.name(), each.laddr.ip) for each in sockets}
            except psutil.NoSuchProcess:
                continue
        return found


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    # pytest's own folders are too long for the names of Ray's sockets
    with tempfile.TemporaryDirectory(prefix="machine-", ignore_cleanup_errors=True) as folder:
        yield from _machine(Path(folder))


def _machine(folder: Path) -> Iterator[Machine]:
    password, token = a_password(), secrets.token_hex(32)
    (folder / "token").write_text(token)
    with serve_postgres(password) as database, pytest.MonkeyPatch.context() as own:
        for key in [key for key in os.environ if key.startswith(_FOREIGN)]:
            own.delenv(key)
        own.setenv("RAY_TMPDIR", str(folder))
        own.setenv("MLFLOW_BACKEND_STORE_URI", database)
        with started_services(folder / "services") as services:
            own.delenv("MLFLOW_BACKEND_STORE_URI")
            told = exported(services)
            ours = {
                "PYTHONPATH": str(ROOT),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
                "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all of Ray's ports on loopback
                "RAY_metrics_report_interval_ms": "3000",  # a gauge lives for two; the node's are taken every 5 s
            }
            keys = {"token": token, "S3": told["AWS_SECRET_ACCESS_KEY"], "PostgreSQL": password}
            with _ray_head(folder, {**os.environ, **told, **ours}, keys) as machine:
                yield machine


@contextmanager
def _ray_head(folder: Path, environment: Mapping[str, str], keys: Mapping[str, str]) -> Iterator[Machine]:
    port, dashboard = a_free_port(), a_free_port()
    command = [RAY, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={a_free_port()}", "--num-cpus=4", "--disable-usage-stats"]
    machine = Machine(
        environment={**environment, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"},
        secrets=keys,
        dashboard=f"http://127.0.0.1:{dashboard}",
        session=folder / "ray" / "session_latest",
        services=folder / "services",
    )
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stdout + done.stderr
        _await_jobs(machine)
        yield machine
    finally:
        left = machine.ray_processes()
        for process in left:
            process.terminate()
        for process in psutil.wait_procs(left, timeout=20)[1]:
            process.kill()


def _await_jobs(machine: Machine) -> None:
    """Ray takes jobs some seconds after its start."""
    headers = {"Authorization": f"Bearer {machine.secrets['token']}", "Content-Type": "application/json"}
    deadline = time.monotonic() + 90
    while answer_of(f"{machine.dashboard}/api/jobs/", headers, b'{"entrypoint": "true"}')[0] != HTTPStatus.OK:
        assert time.monotonic() < deadline, "Ray takes no jobs"
        time.sleep(1)


@pytest.fixture(scope="session")
def trained(machine: Machine) -> Machine:
    """The demo's recipe, cut short, as a job on that machine."""
    began = time.time()
    settings = {"schedule.length": 4, "run.log_every_steps": 5, "run.name": "demo", "run.home": "s3://resnet-ray/runs"}
    settings |= {"data.uri": "s3://resnet-ray/data/mnist5k"}
    chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    job = ["job", "submit", "--", sys.executable, str(ROOT / "pipelines" / "train.py"), "mnist5k", *chosen]
    listening: set[tuple[str, str]] = set()
    with ThreadPoolExecutor(1) as pool:
        submitted = pool.submit(machine.ray, *job)
        while not wait([submitted], timeout=2).done:
            listening |= machine.listeners()
    done = submitted.result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    output = done.stdout + done.stderr
    return replace(machine, output=output, began=began, ended=time.time(), listening=frozenset(listening))


@pytest.fixture(scope="session")
def prometheus(trained: Machine) -> str:
    if not installed():
        pytest.skip("Prometheus is not installed (on Debian: apt-get install prometheus)")
    url = trained.environment["RAY_PROMETHEUS_HOST"]
    scraped = f"{url}/api/v1/query?query=min(timestamp(up))"
    exported = trained.ended + 4  # the last points: Ray's workers export every 3 s
    wait_until(lambda: float(asked(scraped)["data"]["result"][0]["value"][1]) > exported, what="scrape", every=0.5)
    return url


def asked(url: str) -> dict[str, Any]:
    return json.loads(answer_of(url)[1])
