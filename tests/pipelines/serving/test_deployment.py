"""The Ray Serve application over real HTTP: all kinds of requests, and a change of the champion under load."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from infra.registry.versions import load
from pipelines.config.crop import CropConfig
from pipelines.data.images.crops import IMAGE_FILE, eval_view
from tests.pipelines.conftest import COLOURS, SIZE, picture
from tests.pipelines.registered import Registry
from tests.pipelines.serving.requests_to_refuse import base64_of, bomb, file_of, npy_of
from tests.waiting import wait_until

FILE = file_of(picture(COLOURS["lime"], seed=9000).resize((90, 60)), "JPEG")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
JSON = "application/json"
Post = Callable[..., tuple[int, dict[str, Any]]]

pytestmark = pytest.mark.faults  # Ray Serve takes half a minute to start and end


@pytest.fixture(scope="module")
def url(ray_local: None, registry: Registry) -> Iterator[str]:
    """The application at a free port of loopback, a look at the alias every tenth of a second."""
    import socket

    from ray import serve

    from pipelines.serving.deployment import Serving
    from pipelines.serving.models import FromMlflow

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    registry.champion_is(registry.first)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    models = FromMlflow(tracking=registry.tracking, uri=registry.uri)
    serving = Serving(models=models, batch_size=4, poll_s=0.1)
    serve.run(serving.application(), name="test", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture
def post(url: str) -> Post:
    def send(kind: str, body: bytes) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    return send


def rows(answer: dict[str, Any]) -> list[list[float]]:
    return [list(prediction["probabilities"].values()) for prediction in answer["predictions"]]


def test_files_and_arrays_and_json_have_the_answer_of_the_model(post: Post, registry: Registry) -> None:
    model = load(registry.tracking, registry.first.uri)
    status, answer = post("image/jpeg", FILE)
    assert (status, answer["model"]) == (200, {"name": "served", "version": 1})
    (prediction,) = answer["predictions"]
    expected = model.predict(eval_view(FILE, IMAGE_FILE, CropConfig.of_shown(model.metadata))[None])
    assert prediction["class"] == "lime" and list(prediction["probabilities"]) == ["azure", "lime", "scarlet"]
    np.testing.assert_allclose(rows(answer), expected, atol=1e-6)
    _, answer = post(JSON, json.dumps({"instances": [{"image": base64_of(FILE)}]}).encode())
    np.testing.assert_allclose(rows(answer), expected, atol=1e-6)
    for kind, body in (
        ("application/x-npy", npy_of(PIXELS)),
        (JSON, json.dumps({"instances": PIXELS.tolist()}).encode()),
    ):
        _, answer = post(kind, body)
        np.testing.assert_allclose(rows(answer), model.predict(PIXELS), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "body", "status", "reason"),
    [
        ("image/jpeg", b"hello", 422, "the image: not an image (5 bytes)"),
        ("image/png", bomb(), 413, "pixels"),
        ("application/x-npy", npy_of(PIXELS[:, 1:]), 422, f"image 0: {SIZE - 1}x{SIZE}x3, this model takes"),
        (JSON, b"{}", 400, 'send {"instances"'),
        ("image/jpeg", bytes(50_000_000), 413, "the request has 50,000,000 bytes or more, 33,554,432 are allowed"),
        ("text/plain", b"hello", 415, "content-type text/plain"),
    ],
    ids=["no image", "bomb", "shape", "json", "50 MB", "kind"],
)
def test_bad_requests_get_a_status_and_the_reason(post: Post, kind: str, body: bytes, status: int, reason: str) -> None:
    found, answer = post(kind, body)
    assert found == status
    assert reason in answer["error"]


def test_what_is_not_there_says_what_is(url: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{url}/invocations", timeout=60)
    assert error.value.code == 404
    told = json.load(error.value)["error"]
    assert told == "no GET /invocations here: there are POST /invocations and GET /health"


@dataclass(kw_only=True)
class Load:
    """Requests from several threads without a pause."""

    post: Post
    answers: Counter[tuple[int, int, str]] = field(default_factory=Counter)
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self.threads = [threading.Thread(target=self.run) for _ in range(4)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def run(self) -> None:
        while not self.stop.is_set():
            status, answer = self.post("image/jpeg", FILE)
            version = answer.get("model", {}).get("version", 0)
            self.answers[status, version, answer["predictions"][0]["class"]] += 1


def test_a_new_champion_takes_over_without_a_request_lost(post: Post, url: str, registry: Registry) -> None:
    with Load(post=post) as under_load:
        wait_until(lambda: under_load.answers[200, 1, "lime"] > 20)
        registry.champion_is(registry.second)
        wait_until(lambda: under_load.answers[200, 2, "azure"] > 20)
        registry.champion_is(registry.first)
        before = under_load.answers[200, 1, "lime"]
        wait_until(lambda: under_load.answers[200, 1, "lime"] > before + 20)
    # the second version calls azure what is lime: each answer is that of the version that it names
    assert set(under_load.answers) == {(200, 1, "lime"), (200, 2, "azure")}
    with urllib.request.urlopen(f"{url}/health", timeout=30) as answer:
        assert json.load(answer) == {"status": "ok", "model": "models:/served/1", "trouble": None}
