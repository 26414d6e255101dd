"""What the head of a cluster serves beside Ray: MLflow, and S3 where there is no other. It ends when Ray does.

    python -m infra.head --mlflow ~/resnet-ray-state/mlflow [--s3 ~/resnet-ray-state/s3]

MLflow listens on loopback, since only drivers talk to it and they run on the head. S3 listens where it is told to,
because workers read shards and write checkpoints: at the address of AWS_ENDPOINT_URL, with the keys of the environment.
MLflow keeps its runs in the folder and its artifacts in RESNET_RAY_STORAGE/mlflow.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from infra.errors import UserError
from infra.forward import forwarded
from infra.s3_server import serve_s3

_LOOK_EVERY_S = 2.0
_RAY_STARTS_WITHIN_S = 180.0
_RAY_GONE_AFTER_S = 10.0
_STOP_TIMEOUT_S = 10.0
_MLFLOW_PORT = 5000


def main() -> None:
    """Serve until Ray's head, or this process, is stopped."""
    parser = argparse.ArgumentParser(prog="python -m infra.head", description="MLflow and S3 beside a Ray head.")
    parser.add_argument("--mlflow", type=Path, required=True, metavar="FOLDER", help="MLflow's database and log")
    parser.add_argument("--s3", type=Path, metavar="FOLDER", help="serve objects kept here at AWS_ENDPOINT_URL")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with ExitStack() as servers:
            if arguments.s3:
                _s3(arguments.s3, servers)
            mlflow = _Mlflow(arguments.mlflow)
            servers.callback(mlflow.stop)
            for _ in _while_ray_runs():
                mlflow.keep_up()
    except UserError as error:
        sys.exit(f"error: {error}")


def _s3(folder: Path, servers: ExitStack) -> None:
    """The server itself stays on loopback, since its inner ports ask nobody who he is."""
    at = urlsplit(os.environ.get("AWS_ENDPOINT_URL", ""))
    bucket = urlsplit(os.environ.get("RESNET_RAY_STORAGE", "")).netloc
    secret_key = os.environ.get("AWS_SECRET_ACCESS_KEY", "")
    if not (at.hostname and at.port and bucket and secret_key):
        raise UserError(
            "set AWS_ENDPOINT_URL=http://ADDRESS:PORT, AWS_SECRET_ACCESS_KEY and RESNET_RAY_STORAGE=s3://BUCKET"
        )
    server = servers.enter_context(serve_s3(folder, bucket=bucket, secret_key=secret_key))
    inner = urlsplit(server.endpoint)
    assert inner.hostname and inner.port
    servers.enter_context(forwarded((at.hostname, at.port), (inner.hostname, inner.port)))


class _Mlflow:
    """The server's process, started again when it dies."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder.absolute()
        self._process: subprocess.Popen[bytes] | None = None
        self.keep_up()

    def keep_up(self) -> None:
        if self._process and self._process.poll() is None:
            return
        storage = os.environ.get("RESNET_RAY_STORAGE") or self._folder.as_uri()
        database = os.environ.get("MLFLOW_BACKEND_STORE_URI") or f"sqlite:///{self._folder / 'mlflow.db'}"
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(_MLFLOW_PORT)),
            *("--workers", "1", "--backend-store-uri", database, "--artifacts-destination", f"{storage}/mlflow"),
            *("--allowed-hosts", f"127.0.0.1:{_MLFLOW_PORT},localhost:{_MLFLOW_PORT}"),
        ]
        quiet = {
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | quiet,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # with its workers it is one group
            )

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT_S)
                return


def _while_ray_runs() -> Iterator[None]:
    """One turn every two seconds, until this user's Ray head has been gone for a while, or never came."""
    patience = time.monotonic() + _RAY_STARTS_WITHIN_S
    while time.monotonic() < patience:
        yield
        if _ray_runs():
            patience = time.monotonic() + _RAY_GONE_AFTER_S
        time.sleep(_LOOK_EVERY_S)


def _ray_runs() -> bool:
    found = (process.info for process in psutil.process_iter(["name", "uids"]))
    return any(each["name"] == "gcs_server" and each["uids"].real == os.getuid() for each in found)


if __name__ == "__main__":
    main()
