"""Services on a cluster's head: MLflow, and S3 if the cluster has none. They end when Ray does.

    python -m infra.head --mlflow ~/mlflow [--backup CLUSTER] [--s3 ~/resnet-ray-state/s3]

MLflow listens on loopback, because only drivers use it and they run on the head. S3 listens at the address in
AWS_ENDPOINT_URL, with the keys of the environment, because workers read shards and write checkpoints. MLflow keeps its
runs in the folder and its artifacts in RESNET_RAY_STORAGE/mlflow. With --backup, MLflow's database is copied to
RESNET_RAY_STORAGE/mlflow-database/CLUSTER every minute, and a folder without a database gets the newest copy. So a new
head has the runs and the registry of the previous one.

`ray up` on a running cluster restarts Ray and this program. The earlier program ends first, so that code, packages and
keys match those of the nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from infra.cluster import ray_process
from infra.errors import UserError, run
from infra.mlflow_server import database_kept, serve_mlflow
from infra.s3_server import serve_s3
from infra.subprocesses import exit_on_sigterm

_LOOK_EVERY_S = 2.0
_RAY_STARTS_WITHIN_S = 180.0
_RAY_GONE_AFTER_S = 10.0
_MLFLOW_PORT = 5000
_PREDECESSOR_ENDS_WITHIN_S = 60.0


def main() -> None:
    """Serve until Ray's head or this process is stopped."""
    parser = argparse.ArgumentParser(prog="python -m infra.head", description="MLflow and S3 on a Ray head.")
    parser.add_argument("--mlflow", type=Path, required=True, metavar="FOLDER", help="MLflow's database and log")
    parser.add_argument("--s3", type=Path, metavar="FOLDER", help="serve objects kept here at AWS_ENDPOINT_URL")
    parser.add_argument("--backup", metavar="CLUSTER", default="", help="keep backups of the database under this name")
    arguments = parser.parse_args()
    if arguments.backup and not os.environ.get("RESNET_RAY_STORAGE"):
        raise UserError("--backup needs RESNET_RAY_STORAGE=s3://BUCKET, which is not set")
    exit_on_sigterm()
    end_predecessors()
    with ExitStack() as servers:
        if arguments.s3:
            _s3(arguments.s3, servers)
        turns = _while_ray_runs()
        while next(turns, False):  # the server is started again if it dies
            _mlflow_with(turns, arguments.mlflow, arguments.backup)


def end_predecessors() -> None:
    """End earlier processes of this program and user on this machine, with their servers.

    Raises:
        UserError: an earlier process does not end.
    """
    mine, me = psutil.Process().uids().real, os.getpid()
    found = [
        process
        for process in psutil.process_iter(["cmdline", "uids"])
        if ("-m", "infra.head") in pairwise(process.info["cmdline"] or ())
        and process.info["uids"].real == mine
        and process.pid != me
    ]
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    if left := psutil.wait_procs(found, timeout=_PREDECESSOR_ENDS_WITHIN_S)[1]:
        raise UserError(f"process {left[0].pid} serves here already and does not end: kill it, and run this again")


def _s3(folder: Path, servers: ExitStack) -> None:
    """Serve S3 at AWS_ENDPOINT_URL; the server itself stays on loopback, since its inner ports have no login."""
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


def _mlflow_with(turns: Iterator[bool], folder: Path, backup: str) -> None:
    """Run MLflow's server until it dies or the turns end; a failed start is only logged."""
    storage = os.environ.get("RESNET_RAY_STORAGE", "")
    artifacts = f"{storage}/mlflow" if storage else ""
    kept = database_kept(folder, f"{storage}/mlflow-database/{backup}" if backup else "")
    try:
        with kept, serve_mlflow(folder, port=_MLFLOW_PORT, artifacts=artifacts) as server:
            for _ in turns:
                if psutil.Process(server.pid).status() == psutil.STATUS_ZOMBIE:
                    return
    except UserError as error:
        sys.stderr.write(f"{error}\n")  # the caller tries again: a database may come back


def _while_ray_runs() -> Iterator[bool]:
    """Yield every two seconds until this user's Ray head has been gone for 10 s, or did not start within 180 s."""
    deadline = time.monotonic() + _RAY_STARTS_WITHIN_S
    while time.monotonic() < deadline:
        yield True
        if ray_process("gcs_server") is not None:
            deadline = time.monotonic() + _RAY_GONE_AFTER_S
        time.sleep(_LOOK_EVERY_S)


_CHUNK_BYTES = 2**18
_START_TIMEOUT_S = 10.0
Address = tuple[str, int]


@contextmanager
def forwarded(listen: Address, target: Address) -> Iterator[None]:
    """Forward connections from `listen` to `target` until the block ends.

    Raises:
        UserError: `listen` is taken, or is not an address of this machine.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="forward", daemon=True).start()
    serving = asyncio.start_server(lambda *ends: _passed_on(target, *ends), *listen)
    try:
        server = asyncio.run_coroutine_threadsafe(serving, loop).result(_START_TIMEOUT_S)
    except OSError as error:
        raise UserError(f"cannot listen on {listen[0]}:{listen[1]}: {error.strerror}") from error
    try:
        yield
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)


async def _passed_on(target: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        there, back = await asyncio.open_connection(*target)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_copied(reader, back), _copied(there, writer))


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.close()


if __name__ == "__main__":
    run(main)
