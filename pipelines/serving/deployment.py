"""The Ray Serve application: HTTP in, dynamic batches through the model, answers out; the model follows its alias.

A request is answered by the version that was there when it came: it is decoded for that version, waits for a batch with
it, and keeps it alive. A new champion therefore takes over between two requests, and nothing has to be drained.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from infra.mlflow_client import resolve_tracking
from pipelines.inference import HERE, Choice, choose
from pipelines.serving.batches import Scorer, Waiting
from pipelines.serving.following import Following
from pipelines.serving.metrics import Metrics
from pipelines.serving.models import FromMlflow, Models
from pipelines.serving.pictures import Refused
from pipelines.serving.requests import read_body, read_images

_NOT_FOUND, _BUSY = 404, 503
_QUEUED_BATCHES = 64  # of one image a request
BATCH_ON_CPU, BATCH_ON_GPU = 32, 64
_log = logging.getLogger("ray.serve")


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """What is served, and how."""

    models: Models  # what is served; an alias in its URI is followed
    replicas: int = 1
    cpus: int = 1  # of each replica
    choice: Choice = HERE  # whether each has a GPU
    batch_size: int = 0  # images that go through the model at once, at most; 0 = as many as fit the device
    batch_wait_s: float = 0.005  # that the first of them waits for others
    poll_s: float = 10.0  # between two looks at the alias

    @property
    def most_images(self) -> int:
        """That go through the model at once."""
        return self.batch_size or (BATCH_ON_GPU if self.choice.gpu else BATCH_ON_CPU)

    @property
    def most_requests(self) -> int:
        """Under way at once in a replica; more are refused."""
        return _QUEUED_BATCHES * self.most_images

    def application(self) -> serve.Application:
        """What `serve.run` takes."""
        deployment: Any = serve.deployment(
            num_replicas=self.replicas,
            ray_actor_options={"num_cpus": self.cpus, "num_gpus": int(self.choice.gpu)},
            # All wait in a replica, which answers them before it stops: what waits in Serve's own queue is lost then.
            max_ongoing_requests=2 * self.most_requests,
            graceful_shutdown_timeout_s=30,
            health_check_period_s=5,
        )
        application: serve.Application = deployment(Classifier).bind(self)
        return application


def application(arguments: dict[str, Any]) -> serve.Application:
    """What a config file of Ray Serve names, as infra/kuberay/rayservice.yaml does.

    Its `args` are a `Serving`'s numbers, the model's URI as `model`, and `use_gpu` ("auto", true or false);
    MLFLOW_TRACKING_URI says where the model is: a server that every replica reaches.
    """
    given = {name: value for name, value in arguments.items() if name not in ("model", "use_gpu")}
    models = FromMlflow(tracking=resolve_tracking("runs"), uri=arguments["model"])
    choice = choose(arguments.get("use_gpu", "auto"), copies=given.get("replicas", 1), setting="use_gpu")
    return Serving(models=models, choice=choice, **given).application()


class Classifier:
    """A replica."""

    def __init__(self, serving: Serving) -> None:
        self._poll_s, self._most_requests = serving.poll_s, serving.most_requests
        self._under_way = 0
        self._following = Following(serving.models, serving.choice.device())
        self._metrics = Metrics(self._following.now.version)
        self._trouble = ""
        batched: Any = serve.batch(max_batch_size=serving.most_images, batch_wait_timeout_s=serving.batch_wait_s)
        self._score = batched(Scorer(told=self._metrics.batch).score)
        self._polling = asyncio.get_event_loop().create_task(self._poll())

    async def __call__(self, request: Request) -> JSONResponse:
        """What there is: `POST /invocations` and `GET /health`."""
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
                there = "there are POST /invocations and GET /health"
                return JSONResponse({"error": f"no {request.method} {request.url.path} here: {there}"}, _NOT_FOUND)

    async def check_health(self) -> None:
        """Asked by Ray Serve, which replaces a replica that raises here."""
        if self._polling.done():
            raise RuntimeError(f"the alias is no longer followed: {self._polling.exception()}")
        self._metrics.serving(self._following.now.version)  # Ray forgets a gauge that is not told again

    async def _invocations(self, request: Request) -> JSONResponse:
        """Classify the images of a request (`pipelines.serving.requests`)."""
        started, served = time.perf_counter(), self._following.now
        try:
            if self._under_way > self._most_requests:
                raise Refused(_BUSY, f"busy: {self._most_requests:,} requests are under way")
            body = await read_body(request.stream())
            kind = request.headers.get("content-type", "")
            images = await asyncio.to_thread(read_images, kind, body, served.pictures)
        except Refused as refused:
            self._metrics.refused(refused.status)
            return JSONResponse({"error": str(refused)}, refused.status)
        rows = await asyncio.gather(*(self._score(Waiting(served, image)) for image in images))
        self._metrics.answered(served.version, len(images), time.perf_counter() - started)
        model = {"name": served.version.name, "version": served.version.number}
        return JSONResponse({"predictions": served.pictures.answers(np.stack(rows)), "model": model})

    def _health(self) -> JSONResponse:
        """The version that answers, and what keeps another one from it."""
        uri = self._following.now.version.uri
        return JSONResponse({"status": "ok", "model": uri, "trouble": self._trouble or None})

    async def _poll(self) -> None:
        """Follow the alias. Whatever is wrong with MLflow or a new version, the present one goes on answering."""
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
