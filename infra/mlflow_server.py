"""An MLflow server on loopback that stores artifacts for its clients and refuses pickles and foreign Host headers.

    with serve_mlflow(folder) as server:
        os.environ["MLFLOW_TRACKING_URI"] = server.url

The command serves until it is interrupted:

    python -m infra.mlflow_server FOLDER [--port N] [--artifacts URI] [--backup URI]

The database is FOLDER/mlflow.db, or the one in MLFLOW_BACKEND_STORE_URI (postgresql://USER:PASSWORD@HOST/NAME). Keep
the password in the environment: every user of a machine can read its command lines.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.errors import run
from infra.mlflow_backup import DATABASE_FILE, backed_up, restore
from infra.storage import open_store
from infra.subprocesses import (
    HOST,
    Child,
    answers,
    exit_on_sigterm,
    make_folder,
    pick_port,
    running,
    serve_until_sigterm,
)

DATABASE = "MLFLOW_BACKEND_STORE_URI"
_USUAL_PORT = 5000
_READY_TIMEOUT_S = 180.0  # includes creating the tables of a new database on two busy cores
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
        folder: holds the log, and database and artifacts unless they are set elsewhere.
        port: port on loopback; None = 5000, or a free one above it.
        artifacts: URI where the server stores artifacts for its clients, which need no access to it themselves.
        environment: variables for the server only: credentials, or MLFLOW_BACKEND_STORE_URI.
        listen: address to listen on. MLflow has no login, so an address other than loopback needs a closed network.
        allowed_hosts: HOST:PORT of further names that clients may use, in addition to loopback.

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
    """Restore the database in `folder` if there is none, and back it up while the block runs.

    Args:
        folder: the folder given to `serve_mlflow`.
        backups: URI of the backups; "" makes none. A database server gets none either: it has its own backups.
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
    parser.add_argument("folder", type=Path, help="holds the log, and database and artifacts by default")
    parser.add_argument("--port", type=int, help=f"default: {_USUAL_PORT}, or a free one above it")
    parser.add_argument("--artifacts", default="", metavar="URI", help="where artifacts go, such as s3://BUCKET/mlflow")
    parser.add_argument("--backup", default="", metavar="URI", help="where to back up the database and restore it from")
    parser.add_argument("--listen", default=HOST, metavar="ADDRESS", help=f"default: {HOST}; MLflow has no login")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="another name that clients may use",
    )
    arguments = parser.parse_args()
    exit_on_sigterm()
    server_of = serve_mlflow(
        arguments.folder,
        port=arguments.port,
        artifacts=arguments.artifacts,
        listen=arguments.listen,
        allowed_hosts=arguments.allowed_host,
    )
    with database_kept(arguments.folder, arguments.backup), server_of as server:
        serve_until_sigterm(f"export MLFLOW_TRACKING_URI={server.url}\n# served")


if __name__ == "__main__":
    run(main)
