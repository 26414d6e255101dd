"""An MLflow server on loopback that stores artifacts for its clients and refuses pickles and foreign Host headers.

    with serve_mlflow(folder) as server:
        os.environ["MLFLOW_TRACKING_URI"] = server.url

As a command it serves until it is interrupted:

    python -m infra.mlflow_server FOLDER [--port N] [--artifacts URI] [--backup URI]

The database is FOLDER/mlflow.db, or what MLFLOW_BACKEND_STORE_URI names (postgresql://USER:PASSWORD@HOST/NAME): a
password belongs into the environment, since every user of a machine sees its command lines.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.children import HOST, Child, answers, end_when_told, make_folder, pick_port, running, serve_until_told
from infra.errors import run
from infra.mlflow_backup import DATABASE_FILE, backed_up, restore
from infra.storage import open_store

DATABASE = "MLFLOW_BACKEND_STORE_URI"
_USUAL_PORT = 5000
_READY_TIMEOUT_S = 180.0  # a new database first gets its tables, on two busy cores
_ENVIRONMENT = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MlflowServer:
    """A running server."""

    url: str  # http://127.0.0.1:PORT
    pid: int


@contextmanager
def serve_mlflow(
    folder: str | Path,
    *,
    port: int | None = None,
    artifacts: str = "",
    environment: Mapping[str, str] | None = None,
    listen: str = HOST,
    allowed_hosts: Sequence[str] = (),
) -> Iterator[MlflowServer]:
    """Serve until the block ends.

    Args:
        folder: for the log, and for database and artifacts where nothing else is named.
        port: of loopback; None takes 5000, or a free one above it.
        artifacts: URI of the place the server keeps artifacts at for its clients, which need no access of their own.
        environment: what the server alone is to know: credentials, or MLFLOW_BACKEND_STORE_URI.
        listen: address to listen at. MLflow asks nobody for a login, so another than loopback needs a closed network.
        allowed_hosts: HOST:PORT by which clients may call it, beside loopback.

    Raises:
        UserError: the port is taken, or the server does not start (the message names its log).
    """
    folder = make_folder(folder)
    port = pick_port(port, _USUAL_PORT)
    given = {**os.environ, **(environment or {})}
    database = given.get(DATABASE) or f"sqlite:///{folder / DATABASE_FILE}"
    url = f"http://{HOST}:{port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", listen, "--port", str(port), "--workers", "1"),
        *("--serve-artifacts", "--artifacts-destination", artifacts or (folder / "artifacts").as_uri()),
        *("--allowed-hosts", ",".join([f"{HOST}:{port}", f"localhost:{port}", *allowed_hosts])),
        *("--cors-allowed-origins", url),
    ]
    child = Child(
        name="the MLflow server",
        command=command,
        environment={**(environment or {}), **_ENVIRONMENT, DATABASE: database},
        log=folder / "mlflow.log",
        ready=lambda: answers(f"{url}/health"),
        timeout_s=_READY_TIMEOUT_S,
        cwd=folder,
    )
    with running(child) as pid:
        yield MlflowServer(url=url, pid=pid)


@contextmanager
def database_kept(folder: Path, backups: str) -> Iterator[None]:
    """Restore the database in `folder` where there is none, and back it up while the block runs.

    Args:
        folder: as `serve_mlflow` gets it.
        backups: URI of the backups; "" keeps none, and so does a database server, which has backups of its own.
    """
    if not backups or os.environ.get(DATABASE):
        yield
        return
    database, store = make_folder(folder) / DATABASE_FILE, open_store(backups)
    if name := restore(database, store):
        sys.stderr.write(f"MLflow's database was restored from {store.uri}/{name}\n")
    with backed_up(database, store):
        yield


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m infra.mlflow_server", description="An MLflow server on loopback.")
    parser.add_argument("folder", type=Path, help="of the log, and of database and artifacts unless named otherwise")
    parser.add_argument("--port", type=int, help=f"default: {_USUAL_PORT}, or a free one above it")
    parser.add_argument("--artifacts", default="", metavar="URI", help="where artifacts are kept: s3://BUCKET/mlflow")
    parser.add_argument("--backup", default="", metavar="URI", help="back the database up there; restore it from there")
    parser.add_argument("--listen", default=HOST, metavar="ADDRESS", help=f"default: {HOST}; MLflow asks for no login")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="another name that clients use",
    )
    arguments = parser.parse_args()
    end_when_told()
    server_of = serve_mlflow(
        arguments.folder,
        port=arguments.port,
        artifacts=arguments.artifacts,
        listen=arguments.listen,
        allowed_hosts=arguments.allowed_host,
    )
    with database_kept(arguments.folder, arguments.backup), server_of as server:
        serve_until_told(f"export MLFLOW_TRACKING_URI={server.url}\n# served")


if __name__ == "__main__":
    run(main)
