"""Serve a registered model from this command: Ray Serve replicas, and a thread that follows the alias for them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from dataclasses import dataclass

import infra.cluster
from infra.errors import UserError
from infra.interruption import asking
from infra.tracking.client import resolve_tracking
from pipelines.config.sections import UseGpu
from pipelines.evaluation.placement import check, choose
from pipelines.registry.champion import chosen_model
from pipelines.serving.model_watcher import Served
from pipelines.serving.models import Announcer, FromMlflow

_APPLICATION = "resnet-ray"
MODULES = ("ray.serve", "torch", "pipelines.serving.deployment")  # of the controller, the proxy and the replicas
_REPLICA_POLL_S = 1.0  # maximum seconds between a replica's checks of what this command publishes


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeRequest:
    """Options of `serve.py`."""

    model: str | None = None
    """models:/NAME@champion or models:/NAME/VERSION; None = the champion, if there is only one model."""
    home: str = "runs"
    """Folder of MLflow's database, if MLFLOW_TRACKING_URI is not set."""
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    cpus: int = 1
    """CPUs of each replica."""
    batch_size: int = 0
    """Maximum number of images in one forward pass; 0 = 32 on CPUs, 64 on a GPU."""
    batch_wait_s: float = 0.005
    """Seconds that an image waits for others."""
    poll_s: float = 10.0
    """Seconds between two checks of the alias."""
    use_gpu: UseGpu = "auto"


def serve(request: ServeRequest) -> None:
    """Serve until the command is stopped. Requests that are under way are still answered.

    Raises:
        UserError: the address is taken, the model cannot be loaded, or the cluster has too few CPUs or GPUs.
    """
    _check_address(request.host, request.port)
    tracking = resolve_tracking(request.home)
    uri = chosen_model(tracking, request.model)
    models = FromMlflow(tracking=tracking, uri=uri)
    files = models.fetch(models.find())
    version = Served.of(files.open()).version  # a model that cannot be served fails here, with a one-line error
    # without this, Ray's agent reports a local cluster's metrics once a minute
    os.environ.setdefault("RAY_metrics_report_interval_ms", "5000")
    infra.cluster.connect(min_cpus=request.replicas * request.cpus, settings="--replicas or --cpus", modules=MODULES)
    from ray import serve as ray_serve

    from pipelines.serving.deployment import Serving

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # this command prints its own progress

    placement = choose(request.use_gpu, copies=request.replicas)
    check(placement)
    announcer = Announcer(models, files, request.poll_s)
    serving = Serving(
        models=announcer.board,
        replicas=request.replicas,
        cpus=request.cpus,
        choice=placement,
        batch_size=request.batch_size,
        batch_wait_s=request.batch_wait_s,
        poll_s=min(request.poll_s, _REPLICA_POLL_S),
    )
    ray_serve.start(proxy_location="HeadOnly", http_options={"host": request.host, "port": request.port})
    stop, running = threading.Event(), threading.Event()

    def ask() -> bool:
        stop.set()
        return running.is_set()

    with asking(ask, signal.SIGINT, signal.SIGTERM), announcer:
        try:
            ray_serve.run(serving.application(), name=_APPLICATION, route_prefix="/")
            running.set()
            address = f"http://{request.host}:{request.port}"
            _print(f"serving {version.uri} at {address}/invocations, health at {address}/health")
            _print(f"metrics at {_metrics_address()}")
            _print(f"computing on {placement.description}, up to {serving.most_images} images at once")
            stop.wait()
            _print("stopping: requests that are under way get their answers")
        finally:
            ray_serve.delete(_APPLICATION)  # waits for its answers; a Ray that was started here ends with this process


def _check_address(host: str, port: int) -> None:
    """Raise UserError if this machine cannot listen at the address."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {host}:{port}: {error}; give another --port") from None


def _metrics_address() -> str:
    import ray

    node = next(node for node in ray.nodes() if node["Alive"])
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
