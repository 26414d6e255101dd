"""What a cluster has beside Ray, for development on one machine: S3, MLflow with its artifacts there, Prometheus.

    python -m infra.services start [--folder FOLDER]     `make services`
    python -m infra.services status
    python -m infra.services stop                        `make services-stop`
    python -m infra.services run                         in the foreground, until Ctrl-C

All state lies in one folder, runs/services by default: objects, MLflow's database, series, logs, and the file
`environment`, which only its owner can read and a shell sources to use them. Everything listens on loopback, at the
usual ports or free ones above them. MLFLOW_BACKEND_STORE_URI puts MLflow's runs into PostgreSQL.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.children import end_when_told, make_folder, pick_port
from infra.errors import UserError, run
from infra.mlflow_address import redact
from infra.mlflow_server import DATABASE, serve_mlflow
from infra.prometheus_server import installed, serve_prometheus
from infra.s3_server import serve_s3

_FOLDER = Path("runs/services")
_S3_PORT = 8333
_BUCKET = "resnet-ray"
_START_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """The services whose state lies in a folder, running or not."""

    folder: Path

    @property
    def environment(self) -> Path:
        """What a shell sources; there while all services are ready."""
        return self.folder / "environment"

    @property
    def _record(self) -> Path:
        return self.folder / "processes.json"

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM.

        Raises:
            UserError: they run already, or one does not start.
        """
        if self.alive():
            raise UserError(f"the services of {self.folder} run already: `{self._make('services-stop')}` ends them")
        self._make_folder()
        end_when_told()
        processes: dict[str, int] = {}
        with ExitStack() as servers:
            servers.callback(self._forget)
            self._note(processes, "services", os.getpid())
            s3 = servers.enter_context(
                serve_s3(self.folder / "s3", bucket=_BUCKET, port=pick_port(None, _S3_PORT), secret_key=self._key())
            )
            self._note(processes, "S3", s3.pid)
            mlflow = servers.enter_context(
                serve_mlflow(self.folder / "mlflow", artifacts=f"s3://{_BUCKET}/mlflow", environment=s3.environment)
            )
            self._note(processes, "MLflow", mlflow.pid)
            variables = {**s3.environment, "MLFLOW_TRACKING_URI": mlflow.url}
            lines = [
                f"S3          s3://{_BUCKET} at {s3.endpoint}",
                f"MLflow      {mlflow.url}, runs in {redact(os.environ.get(DATABASE) or 'SQLite')}",
            ]
            if installed():
                prometheus = servers.enter_context(serve_prometheus(self.folder / "prometheus"))
                self._note(processes, "Prometheus", prometheus.pid)
                variables["RAY_PROMETHEUS_HOST"] = prometheus.url
                lines.append(f"Prometheus  {prometheus.url}/consoles/dashboards.html")
            else:
                lines.append("Prometheus  not installed (on Debian: apt-get install prometheus): no metrics are kept")
            self._offer(variables, lines)
            signal.pause()

    def start(self) -> None:
        """Have another process `run`, and come back when all services are ready."""
        if self.alive() and self.environment.exists():
            return
        self._make_folder()
        self.stop()
        command = [sys.executable, "-m", "infra.services", "run", "--folder", str(self.folder)]
        with (self.folder / "services.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self.environment.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                told = (self.folder / "services.log").read_text().strip().splitlines()
                raise UserError(told[-1].removeprefix("error: ") if told else "the services did not start")
            time.sleep(0.1)

    def stop(self) -> None:
        """End every process of these services, whoever is left of them."""
        processes = self._processes()
        if "services" in processes:
            processes["services"].terminate()
            _wait(processes["services"])
        for process in self._processes().values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            _wait(process)
        self._forget()

    def alive(self) -> bool:
        """Whether the process that holds the services runs."""
        return "services" in self._processes()

    def status(self) -> str:
        """What runs and where, as `start` tells it."""
        if not (self.alive() and self.environment.exists()):
            raise UserError(f"no services run from {self.folder}: `{self._make('services')}` starts them")
        told = (line[2:] for line in self.environment.read_text().splitlines() if line.startswith("# "))
        place = os.path.relpath(self.environment)
        return "\n".join([*told, f"use them    . {shlex.quote(place if '/' in place else f'./{place}')}"])

    def _make(self, target: str) -> str:
        """The shell command that makes this target for this folder."""
        default = self.folder == _FOLDER.absolute()
        return shlex.join(["make", target, *([] if default else [f"SERVICES={self.folder}"])])

    def _processes(self) -> dict[str, psutil.Process]:
        """Those on record that run, by name; a pid that went to another process since is not one of ours."""
        try:
            record = json.loads(self._record.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = {}
        for name, (pid, began) in record.items():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.create_time() == began and not _ended(process):
                    found[name] = process
        return found

    def _make_folder(self) -> None:
        make_folder(self.folder).chmod(0o700)

    def _note(self, processes: dict[str, int], name: str, pid: int) -> None:
        processes[name] = pid
        record = {each: [number, psutil.Process(number).create_time()] for each, number in processes.items()}
        self._write(self._record, json.dumps(record))

    def _key(self) -> str:
        """The S3 secret, the same at every start, so that shells which know it go on."""
        file = self.folder / "s3.key"
        if not file.exists():
            self._write(file, secrets.token_hex(32))
        return file.read_text()

    def _offer(self, variables: dict[str, str], lines: list[str]) -> None:
        exports = [f"export {key}={value}" for key, value in variables.items()]
        self._write(self.environment, "".join(f"{line}\n" for line in [*(f"# {line}" for line in lines), *exports]))

    def _write(self, file: Path, text: str) -> None:
        """Whole or not at all, for its owner alone."""
        new = file.with_name(f"{file.name}.new")
        new.touch(mode=0o600)
        new.write_text(text)
        new.replace(file)

    def _forget(self) -> None:
        for file in (self.environment, self._record):
            file.unlink(missing_ok=True)


def _wait(process: psutil.Process) -> None:
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while not _ended(process) and time.monotonic() < deadline:
        time.sleep(0.05)


def _ended(process: psutil.Process) -> bool:
    """Also one that nobody has waited for: its parent may be no relation of ours."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m infra.services", description="S3, MLflow and Prometheus here.")
    parser.add_argument("action", choices=["start", "stop", "status", "run"])
    parser.add_argument("--folder", type=Path, default=_FOLDER, help=f"default: {_FOLDER}")
    arguments = parser.parse_args()
    services = Services(folder=arguments.folder.absolute())
    match arguments.action:
        case "run":
            services.run()
        case "stop":
            services.stop()
        case "start":
            services.start()
    if arguments.action in ("start", "status"):
        sys.stdout.write(f"{services.status()}\n")


if __name__ == "__main__":
    run(main)
