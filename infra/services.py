"""Development services on one machine: S3, MLflow with its artifacts in S3, and Prometheus.

    python -m infra.services ACTION [--folder FOLDER]

ACTION is `start` (`make services`), `stop` (`make services-stop`), `status`, or `run`, which serves until Ctrl-C.

All state is in one folder, runs/services by default: objects, MLflow's database, metrics, logs, and the file
`environment`. A shell sources that file to use the services; only the owner can read the file. Every service listens on
loopback, at its usual port or a free one above it. MLFLOW_BACKEND_STORE_URI puts MLflow's runs into PostgreSQL.
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

from infra.errors import UserError, run
from infra.mlflow_server import DATABASE, serve_mlflow
from infra.prometheus_server import installed, serve_prometheus
from infra.s3_server import serve_s3
from infra.subprocesses import ended, exit_on_sigterm, make_folder, pick_port, wait_for_end
from infra.tracking.address import redact

_FOLDER = Path("runs/services")
_S3_PORT = 8333
_BUCKET = "resnet-ray"
_START_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """The services whose state is in one folder, running or not."""

    folder: Path

    @property
    def environment(self) -> Path:
        """File that a shell sources; it exists while all services are ready."""
        return self.folder / "environment"

    @property
    def _record(self) -> Path:
        return self.folder / "processes.json"

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM.

        Raises:
            UserError: the services run already, or one does not start.
        """
        if self.alive():
            raise UserError(f"the services of {self.folder} run already: `{self._make('services-stop')}` ends them")
        self._make_folder()
        exit_on_sigterm()
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
        """Start `run` in another process; return when all services are ready.

        Raises:
            UserError: a service did not start.
        """
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
                log_lines = (self.folder / "services.log").read_text().strip().splitlines()
                raise UserError(log_lines[-1].removeprefix("error: ") if log_lines else "the services did not start")
            time.sleep(0.1)

    def stop(self) -> None:
        """End every process of these services that still runs."""
        processes = self._processes()
        if "services" in processes:
            processes["services"].terminate()
            wait_for_end([processes["services"]], _STOP_TIMEOUT_S)
        for process in self._processes().values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            wait_for_end([process], _STOP_TIMEOUT_S)
        self._forget()

    def alive(self) -> bool:
        """Return whether the process that started the services runs."""
        return "services" in self._processes()

    def status(self) -> str:
        """Return the lines that `start` prints: the services and their addresses."""
        if not (self.alive() and self.environment.exists()):
            raise UserError(f"no services run from {self.folder}: `{self._make('services')}` starts them")
        lines = (line[2:] for line in self.environment.read_text().splitlines() if line.startswith("# "))
        place = os.path.relpath(self.environment)
        return "\n".join([*lines, f"use them    . {shlex.quote(place if '/' in place else f'./{place}')}"])

    def _make(self, target: str) -> str:
        """Return the shell command that runs a make target for this folder."""
        default = self.folder == _FOLDER.absolute()
        return shlex.join(["make", target, *([] if default else [f"SERVICES={self.folder}"])])

    def _processes(self) -> dict[str, psutil.Process]:
        """Return the recorded processes that still run, by name; a pid that was reused since does not count."""
        try:
            record = json.loads(self._record.read_text())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        found = {}
        for name, (pid, began) in record.items():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.create_time() == began and not ended(process):
                    found[name] = process
        return found

    def _make_folder(self) -> None:
        make_folder(self.folder).chmod(0o700)

    def _note(self, processes: dict[str, int], name: str, pid: int) -> None:
        processes[name] = pid
        record = {each: [number, psutil.Process(number).create_time()] for each, number in processes.items()}
        self._write(self._record, json.dumps(record))

    def _key(self) -> str:
        """Return the S3 secret; it is the same at every start, so it stays valid in open shells."""
        file = self.folder / "s3.key"
        if not file.exists():
            self._write(file, secrets.token_hex(32))
        return file.read_text()

    def _offer(self, variables: dict[str, str], lines: list[str]) -> None:
        exports = [f"export {key}={value}" for key, value in variables.items()]
        self._write(self.environment, "".join(f"{line}\n" for line in [*(f"# {line}" for line in lines), *exports]))

    def _write(self, file: Path, text: str) -> None:
        """Write a file atomically, for its owner only."""
        new = file.with_name(f"{file.name}.new")
        new.touch(mode=0o600)
        new.write_text(text)
        new.replace(file)

    def _forget(self) -> None:
        for file in (self.environment, self._record):
            file.unlink(missing_ok=True)


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
