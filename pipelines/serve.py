"""Serve a registered model over HTTP: `python pipelines/serve.py [--model models:/NAME@champion] [--port 8000]`.

It answers at `/invocations` until it is stopped, batches what comes at the same time, and follows the alias: a new
champion takes over without a request lost. docs/serving.md has the requests and answers.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.interruption import listen

    listen()

import infra.cluster
from infra.errors import UserError
from infra.interruption import asking
from infra.mlflow_client import resolve_tracking
from infra.registry import CHAMPION
from pipelines import cli
from pipelines.chosen_model import chosen_model
from pipelines.inference import check, choose
from pipelines.serving.following import Served
from pipelines.serving.models import Announcer, FromMlflow

_APPLICATION = "resnet-ray"
_BOARD_S = 1.0  # between a replica's looks at what this command shows, at most


def main() -> None:
    arguments = _parser().parse_args()
    _check(arguments)
    tracking = resolve_tracking(arguments.home)
    uri = chosen_model(tracking, arguments.model)
    models = FromMlflow(tracking=tracking, uri=uri)
    files = models.fetch(models.find())
    version = Served.of(files.open()).version  # what is wrong with it is told here, in one line
    # Ray's agent else tells a local cluster's metrics once a minute
    os.environ.setdefault("RAY_metrics_report_interval_ms", "5000")
    infra.cluster.connect(min_cpus=arguments.replicas * arguments.cpus, settings="--replicas or --cpus")
    from ray import serve

    from pipelines.serving.deployment import Serving

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # this command says itself what it does

    choice = choose(cli.use_gpu(arguments), copies=arguments.replicas)
    check(choice)
    announcer = Announcer(models, files, arguments.poll_s)
    serving = Serving(
        models=announcer.board,
        replicas=arguments.replicas,
        cpus=arguments.cpus,
        choice=choice,
        batch_size=arguments.batch_size or 0,
        batch_wait_s=arguments.batch_wait_ms / 1000,
        poll_s=min(arguments.poll_s, _BOARD_S),
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": arguments.host, "port": arguments.port})
    stop, serves = threading.Event(), threading.Event()

    def ask() -> bool:
        stop.set()
        return serves.is_set()

    with asking(ask, signal.SIGINT, signal.SIGTERM), announcer:
        try:
            serve.run(serving.application(), name=_APPLICATION, route_prefix="/")
            serves.set()
            address = f"http://{arguments.host}:{arguments.port}"
            print(f"serving {version.uri} at {address}/invocations, health at {address}/health", flush=True)
            print(f"metrics at {_metrics_address()}", flush=True)
            print(f"computing on {choice.told}, up to {serving.most_images} images at once", flush=True)
            stop.wait()
            print("stopping: requests that are under way get their answers", flush=True)
        finally:
            serve.delete(_APPLICATION)  # after its answers; a Ray that was started here ends with this process


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Serve a registered model over HTTP with Ray Serve.")
    told = f"models:/NAME@{CHAMPION} or models:/NAME/VERSION (default: the champion, where there is one model)"
    parser.add_argument("--model", metavar="URI", help=told)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--replicas", type=int, default=1, help="copies of the model (default: 1)")
    parser.add_argument("--cpus", type=int, default=1, help="of each replica (default: 1)")
    told = "images at once, at most (default: 32 on CPUs, 64 on a GPU)"
    parser.add_argument("--batch-size", type=int, metavar="N", help=told)
    told = "that an image waits for others (default: 5)"
    parser.add_argument("--batch-wait-ms", type=float, default=5, metavar="MS", help=told)
    told = "seconds between two looks at the alias (default: 10)"
    parser.add_argument("--poll-s", type=float, default=10, metavar="S", help=told)
    cli.add_use_gpu(parser)
    parser.add_argument("--home", default="runs", help="folder of MLflow's database without MLFLOW_TRACKING_URI")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    for name in ("replicas", "cpus", "batch_size"):
        if (given := getattr(arguments, name)) is not None and given < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {given}")
    if arguments.batch_wait_ms < 0 or arguments.poll_s <= 0:
        raise UserError("--batch-wait-ms must not be negative, --poll-s must be above 0")
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((arguments.host, arguments.port))
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {arguments.host}:{arguments.port}: {error}; give another --port") from None


def _metrics_address() -> str:
    import ray

    node = next(node for node in ray.nodes() if node["Alive"])
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


if __name__ == "__main__":
    cli.run(main, "interrupted")
