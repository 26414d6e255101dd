"""What the head of a cluster serves beside Ray: MLflow, and S3 where there is no other. It ends when Ray does.

    python -m infra.head --mlflow ~/mlflow [--backup CLUSTER] [--s3 ~/resnet-ray-state/s3]

MLflow listens on loopback, since only drivers talk to it and they run on the head. S3 listens where it is told to,
because workers read shards and write checkpoints: at the address of AWS_ENDPOINT_URL, with the keys of the environment.
MLflow keeps its runs in the folder and its artifacts in RESNET_RAY_STORAGE/mlflow. With --backup, it copies its
database to RESNET_RAY_STORAGE/mlflow-database/CLUSTER every minute, and a folder without a database gets the newest
copy: a new head has the runs and the registry of the one before it.

`ray up` on a cluster that runs starts Ray anew, and this too: what served here before ends first, so that code,
packages and keys are those that the nodes have now.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from infra.children import end_when_told
from infra.cluster import ray_process
from infra.errors import UserError, run
from infra.forward import forwarded
from infra.mlflow_server import database_kept, serve_mlflow
from infra.s3_server import serve_s3

_LOOK_EVERY_S = 2.0
_RAY_STARTS_WITHIN_S = 180.0
_RAY_GONE_AFTER_S = 10.0
_MLFLOW_PORT = 5000
_PREDECESSOR_ENDS_WITHIN_S = 60.0


def main() -> None:
    """Serve until Ray's head, or this process, is stopped."""
    parser = argparse.ArgumentParser(prog="python -m infra.head", description="MLflow and S3 beside a Ray head.")
    parser.add_argument("--mlflow", type=Path, required=True, metavar="FOLDER", help="MLflow's database and log")
    parser.add_argument("--s3", type=Path, metavar="FOLDER", help="serve objects kept here at AWS_ENDPOINT_URL")
    parser.add_argument("--backup", metavar="CLUSTER", default="", help="keep backups of the database under this name")
    arguments = parser.parse_args()
    if arguments.backup and not os.environ.get("RESNET_RAY_STORAGE"):
        raise UserError("--backup needs RESNET_RAY_STORAGE=s3://BUCKET, which is not set")
    end_when_told()
    end_predecessors()
    with ExitStack() as servers:
        if arguments.s3:
            _s3(arguments.s3, servers)
        turns = _while_ray_runs()
        while next(turns, False):  # the server is started again if it dies
            _mlflow_with(turns, arguments.mlflow, arguments.backup)


def end_predecessors() -> None:
    """End this program where this user runs it on this machine already, and what it serves.

    Raises:
        UserError: it does not end.
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


def _mlflow_with(turns: Iterator[bool], folder: Path, backup: str) -> None:
    """MLflow's server, until it dies or the turns are over; one that does not start ends nothing else."""
    storage = os.environ.get("RESNET_RAY_STORAGE", "")
    artifacts = f"{storage}/mlflow" if storage else ""
    kept = database_kept(folder, f"{storage}/mlflow-database/{backup}" if backup else "")
    try:
        with kept, serve_mlflow(folder, port=_MLFLOW_PORT, artifacts=artifacts) as server:
            for _ in turns:
                if psutil.Process(server.pid).status() == psutil.STATUS_ZOMBIE:
                    return
    except UserError as error:
        sys.stderr.write(f"{error}\n")  # it is tried again: a database may come back


def _while_ray_runs() -> Iterator[bool]:
    """A turn every two seconds, until this user's Ray head has been gone for a while, or never came."""
    patience = time.monotonic() + _RAY_STARTS_WITHIN_S
    while time.monotonic() < patience:
        yield True
        if ray_process("gcs_server") is not None:
            patience = time.monotonic() + _RAY_GONE_AFTER_S
        time.sleep(_LOOK_EVERY_S)


if __name__ == "__main__":
    run(main)
