"""The Ray Serve application: HTTP in, dynamic batches through the model, responses out. The model follows its alias.

A request is answered by the version that is in use when the request arrives. The request is decoded for this version,
waits for a batch with it, and keeps it alive. So a new champion takes over between two requests, and nothing has to be
drained.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from ray import serve
from ray.serve.metrics import Counter, Gauge, Histogram
from starlette.requests import Request
from starlette.responses import JSONResponse

from infra.tracking.client import resolve_tracking
from pipelines.evaluation.placement import HERE, InferencePlacement, choose
from pipelines.serving.model_watcher import ModelWatcher, Served
from pipelines.serving.models import FromMlflow, Models
from pipelines.serving.preprocessing import Pixels, Refused
from pipelines.serving.requests import read_body, read_images

if TYPE_CHECKING:
    from infra.registry.versions import Version

_NOT_FOUND, _BUSY = 404, 503
_QUEUED_BATCHES = 64  # batches that may wait, if each request has one image
BATCH_ON_CPU, BATCH_ON_GPU = 32, 64
_log = logging.getLogger("ray.serve")


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """Settings of the application."""

    models: Models  # source of the model; an alias in its URI is followed
    replicas: int = 1
    cpus: int = 1  # CPUs of each replica
    choice: InferencePlacement = HERE  # CPUs, or one GPU for each replica
    batch_size: int = 0  # maximum number of images in one forward pass; 0 = BATCH_ON_CPU or BATCH_ON_GPU
    batch_wait_s: float = 0.005  # seconds that the first image of a batch waits for others
    poll_s: float = 10.0  # seconds between two checks of the alias

    @property
    def most_images(self) -> int:
        """Maximum number of images in one forward pass."""
        return self.batch_size or (BATCH_ON_GPU if self.choice.gpu else BATCH_ON_CPU)

    @property
    def most_requests(self) -> int:
        """Maximum number of requests under way in a replica; more are refused."""
        return _QUEUED_BATCHES * self.most_images

    def application(self) -> serve.Application:
        """Return the application for `serve.run`."""
        deployment: Any = serve.deployment(
            num_replicas=self.replicas,
            ray_actor_options={"num_cpus": self.cpus, "num_gpus": int(self.choice.gpu)},
            # Requests wait in the replica, which answers them before it stops. Serve's own queue would lose them.
            max_ongoing_requests=2 * self.most_requests,
            graceful_shutdown_timeout_s=30,
            health_check_period_s=5,
        )
        application: serve.Application = deployment(Classifier).bind(self)
        return application


def application(arguments: dict[str, Any]) -> serve.Application:
    """Return the application that a config file of Ray Serve names, such as infra/kuberay/rayservice.yaml.

    The file's `args` are a `Serving`'s numbers, the model's URI as `model`, and `use_gpu` ("auto", true or false).
    MLFLOW_TRACKING_URI must name a server that every replica can reach.
    """
    given = {name: value for name, value in arguments.items() if name not in ("model", "use_gpu")}
    models = FromMlflow(tracking=resolve_tracking("runs"), uri=arguments["model"])
    placement = choose(arguments.get("use_gpu", "auto"), copies=given.get("replicas", 1), setting="use_gpu")
    return Serving(models=models, choice=placement, **given).application()


class Classifier:
    """A replica of the application."""

    def __init__(self, serving: Serving) -> None:
        self._poll_s, self._most_requests = serving.poll_s, serving.most_requests
        self._under_way = 0
        if not serving.choice.gpu:
            torch.set_num_threads(serving.cpus)
        self._following = ModelWatcher(serving.models, serving.choice.device())
        self._metrics = Metrics(self._following.now.version)
        self._trouble = ""
        batched: Any = serve.batch(max_batch_size=serving.most_images, batch_wait_timeout_s=serving.batch_wait_s)
        self._score = batched(Scorer(told=self._metrics.batch).score)
        self._polling = asyncio.get_event_loop().create_task(self._poll())

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer `POST /invocations` and `GET /health`; refuse other requests with 404."""
        match request.method, request.url.path:
            case "POST", "/invocations":
                self._under_way += 1
                try:
                    return await self._invocations(request)
                finally:
                    self._under_way -= 1
            case "GET", "/health":
                return self._health()
            case _:
                routes = "there are POST /invocations and GET /health"
                return JSONResponse({"error": f"no {request.method} {request.url.path} here: {routes}"}, _NOT_FOUND)

    async def check_health(self) -> None:
        """Raise RuntimeError if the alias is no longer followed. Ray Serve then replaces the replica."""
        if self._polling.done():
            raise RuntimeError(f"the alias is no longer followed: {self._polling.exception()}")
        self._metrics.serving(self._following.now.version)  # Ray drops a gauge that is not set again

    async def _invocations(self, request: Request) -> JSONResponse:
        """Classify the images of a request (`pipelines.serving.requests`)."""
        started, served = time.perf_counter(), self._following.now
        try:
            if self._under_way > self._most_requests:
                raise Refused(_BUSY, f"busy: {self._most_requests:,} requests are under way")
            body = await read_body(request.stream())
            kind = request.headers.get("content-type", "")
            images = await asyncio.to_thread(read_images, kind, body, served.preprocessing)
        except Refused as refused:
            self._metrics.refused(refused.status)
            return JSONResponse({"error": str(refused)}, refused.status)
        rows = await asyncio.gather(*(self._score(Waiting(served, image)) for image in images))
        self._metrics.answered(served.version, len(images), time.perf_counter() - started)
        model = {"name": served.version.name, "version": served.version.number}
        return JSONResponse({"predictions": served.preprocessing.answers(np.stack(rows)), "model": model})

    def _health(self) -> JSONResponse:
        """Return the version that answers, and the reason if another version cannot take over."""
        uri = self._following.now.version.uri
        return JSONResponse({"status": "ok", "model": uri, "trouble": self._trouble or None})

    async def _poll(self) -> None:
        """Follow the alias. If MLflow or a new version fails, the current version continues to answer."""
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                changed = await asyncio.to_thread(self._following.refresh)
            except Exception as error:
                trouble = str(error) or type(error).__name__
                if trouble != self._trouble:
                    _log.warning("%s stays: %s", self._following.now.version.uri, trouble)
                    self._metrics.reload_failed()
                self._trouble = trouble
                continue
            self._trouble = ""
            if changed:
                _log.info("now %s", self._following.now.version.uri)
                self._metrics.serving(self._following.now.version)


Row = npt.NDArray[np.float32]
"""Probabilities of one image, float32 [K]."""


class Waiting(NamedTuple):
    """An image that waits for a batch, with the version that it was decoded for."""

    served: Served
    image: Pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """Scorer of batches. While the champion changes, a batch may hold images for two versions."""

    told: Callable[[int], None]
    """Function that is called with the number of images of each forward pass."""
    # one thread: one forward pass at a time, always with the same OpenMP threads
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="model"))

    async def score(self, batch: list[Waiting]) -> list[Row]:
        """Return the probabilities of each image, in order."""
        places: dict[int, list[int]] = defaultdict(list)
        for place, waiting in enumerate(batch):
            places[waiting.served.version.number].append(place)
        rows: dict[int, Row] = {}
        for group in places.values():
            images, served = np.stack([batch[place].image for place in group]), batch[group[0]].served
            found = await asyncio.get_running_loop().run_in_executor(self._thread, served.predict, images)
            self.told(len(group))
            rows.update(zip(group, found, strict=True))
        return [rows[place] for place in range(len(batch))]


_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
_IMAGES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]


class Metrics:
    """Metrics of one replica. Ray Serve adds the tags deployment, replica and application."""

    def __init__(self, version: Version) -> None:
        self._images = Counter("resnet_ray_images", "Images that were classified.", ("version",))
        self._refused = Counter("resnet_ray_refused_requests", "Requests without an answer.", ("status",))
        self._seconds = Histogram("resnet_ray_request_seconds", "From request to answer.", _SECONDS)
        self._batch = Histogram("resnet_ray_batch_images", "Images that went through the model at once.", _IMAGES)
        self._version = Gauge("resnet_ray_model_version", "Number of the version that answers.", ("model",))
        self._failed = Counter("resnet_ray_reload_failures", "Versions that could not take over.")
        self.serving(version)

    def answered(self, version: Version, images: int, seconds: float) -> None:
        """Count the images of a request that was answered, and its duration."""
        self._images.inc(images, {"version": str(version.number)})
        self._seconds.observe(seconds)

    def refused(self, status: int) -> None:
        """Count a request that was refused with this HTTP status."""
        self._refused.inc(1, {"status": str(status)})

    def batch(self, images: int) -> None:
        """Record the number of images in one forward pass."""
        self._batch.observe(images)

    def serving(self, version: Version) -> None:
        """Record that this version answers now."""
        self._version.set(version.number, {"model": version.name})

    def reload_failed(self) -> None:
        """Count a version that should take over and cannot."""
        self._failed.inc()
