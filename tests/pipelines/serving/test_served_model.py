"""What `mlflow models serve` answers: its own server in this process, and once as users start it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from infra.registry.versions import load
from infra.tracking.client import connect
from pipelines.config.crop import CropConfig
from pipelines.data.images.crops import IMAGE_FILE, eval_view
from tests.pipelines.conftest import COLOURS, SIZE, picture
from tests.pipelines.registered import Registry
from tests.pipelines.serving.requests_to_refuse import base64_of, bomb, file_of

FILE = file_of(picture(COLOURS["lime"], seed=9000).resize((90, 60)), "JPEG")


def folder_of(registry: Registry) -> Path:
    uri = connect(registry.tracking).get_model_version_download_uri(registry.first.name, "1")
    return Path(uri.removeprefix("file://"))


@pytest.fixture(scope="module", autouse=True)
def path_as_before() -> Iterator[None]:
    """MLflow puts a model's own code first in sys.path, where other tests' processes would find it."""
    path = list(sys.path)
    yield
    sys.path[:] = path


@pytest.fixture(scope="module")
def client(registry: Registry) -> Iterator[TestClient]:
    """MLflow's server over the model's folder, without a socket."""
    yield TestClient(scoring_server.init(mlflow.pyfunc.load_model(str(folder_of(registry)))))


@pytest.fixture(scope="module")
def expected(registry: Registry) -> dict[str, float]:
    model = load(registry.tracking, registry.first.uri)
    pixels = eval_view(FILE, IMAGE_FILE, CropConfig.of_shown(model.metadata))
    return dict(zip(COLOURS, model.predict(pixels[None])[0].tolist(), strict=True))


IMAGE = base64_of(FILE)


@pytest.mark.parametrize(
    "request_",
    [
        {"instances": [{"image": IMAGE}]},
        {"instances": [IMAGE]},
        {"inputs": {"image": [IMAGE]}},
        {"dataframe_records": [{"image": IMAGE}]},
        {"dataframe_split": {"columns": ["image"], "data": [[IMAGE]]}},
    ],
)
def test_a_jpeg_in_every_form_of_request(client: TestClient, expected: dict[str, float], request_) -> None:
    answer = client.post("/invocations", json=request_)
    assert answer.status_code == 200
    (prediction,) = answer.json()["predictions"]
    assert prediction["class"] == "lime"
    assert prediction["probabilities"] == pytest.approx(expected, abs=1e-6)
    assert prediction["probability"] == max(prediction["probabilities"].values())


def test_arrays_and_several_images(client: TestClient, registry: Registry) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    expected = load(registry.tracking, registry.first.uri).predict(images)
    for request in (
        {"instances": [{"image": image} for image in images.tolist()]},
        {"instances": images.tolist()},
        {"inputs": {"image": images.tolist()}},
    ):
        predictions = client.post("/invocations", json=request).json()["predictions"]
        found = [list(prediction["probabilities"].values()) for prediction in predictions]
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "status", "reason"),
    [
        (base64_of(b"hello"), 422, "image 0: not an image (5 bytes)"),
        ("!!", 400, "image 0: not base64"),
        (base64_of(bomb()), 413, "pixels"),
        (np.zeros((28, 28, 3), int).tolist(), 422, f"image 0: 28x28x3, this model takes {SIZE}x{SIZE}x3"),
        (np.full((SIZE, SIZE, 3), 256).tolist(), 422, "image 0: its values are not whole numbers from 0 to 255"),
        ("A" * 50_000_000, 413, "the images have more than 33,554,432 bytes"),
    ],
    ids=["no image", "no base64", "bomb", "shape", "values", "50 MB"],
)
def test_bad_requests_get_a_status_and_the_reason_alone(
    client: TestClient, image: object, status: int, reason: str
) -> None:
    answer = client.post("/invocations", json={"instances": [{"image": image}]})
    assert answer.status_code == status
    assert reason in answer.json()["message"]
    assert len(answer.text) < 300


def test_the_example_that_mlflow_shows_is_one_that_works(client: TestClient, registry: Registry) -> None:
    example = json.loads((folder_of(registry) / "serving_input_example.json").read_text())
    assert len(client.post("/invocations", json=example).json()["predictions"]) == 1


def test_a_model_with_a_changed_file_does_not_start(registry: Registry) -> None:
    file = folder_of(registry) / "code/pipelines/serving/preprocessing.py"
    text = file.read_text()
    file.write_text(text + "\n")
    try:
        with pytest.raises(
            MlflowException, match=r"code/pipelines/serving/preprocessing\.py is not what was registered"
        ):
            mlflow.pyfunc.load_model(str(folder_of(registry)))
    finally:
        file.write_text(text)


def test_the_registry_still_takes_it_for_what_was_registered(client: TestClient, registry: Registry) -> None:
    """Python's caches, which a server leaves beside the code that it runs, are no change."""
    cache = folder_of(registry) / "code/pipelines/serving/__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "preprocessing.cpython-311.pyc").write_bytes(b"")
    try:
        assert load(registry.tracking, registry.first.uri).version.uri == registry.first.uri
    finally:
        (cache / "preprocessing.cpython-311.pyc").unlink()


@pytest.mark.faults
def test_mlflow_models_serve_where_this_project_is_not(
    registry: Registry, expected: dict[str, float], tmp_path: Path, free_port: int
) -> None:
    registry.champion_is(registry.first)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": registry.tracking.uri}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", registry.uri, "--env-manager", "local"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(free_port)], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{free_port}"
        deadline = time.monotonic() + 120
        while not answers(f"{url}/health"):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        body = json.dumps({"instances": [{"image": base64.b64encode(FILE).decode()}]}).encode()
        request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            (prediction,) = json.load(answer)["predictions"]
        assert prediction["probabilities"] == pytest.approx(expected, abs=1e-6)
    finally:
        server.terminate()
        server.wait(60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_arrays_in_python(registry: Registry) -> None:
    """What docs/serving.md shows, and every other form that a program may have its images in."""
    model = mlflow.pyfunc.load_model(str(folder_of(registry)))
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    expected = load(registry.tracking, registry.first.uri).predict(images)
    for given in (
        images,
        list(images),
        images.tolist(),
        {"image": images},
        [{"image": image} for image in images],
        pd.DataFrame({"image": list(images)}),
    ):
        found = [list(answer["probabilities"].values()) for answer in model.predict(given)]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    (one,) = model.predict(images[0])
    np.testing.assert_allclose(list(one["probabilities"].values()), expected[0], atol=1e-6)
    assert [model.predict(given)[0]["class"] for given in (FILE, [FILE], IMAGE, [{"image": IMAGE}])] == ["lime"] * 4


def test_the_snippet_of_the_docs(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[3] / "docs/serving.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "models:/photos@champion" in snippet and "28, 28" in snippet
    registry.champion_is(registry.first)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.tracking.uri)
    monkeypatch.chdir(tmp_path)
    Path("shirt.png").write_bytes(FILE)
    exec(snippet.replace("photos@", "served@").replace("28, 28", f"{SIZE}, {SIZE}"), {})
    assert len(capsys.readouterr().out.splitlines()) == 8


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), f"image 0: 8x8x3, this model takes {SIZE}x{SIZE}x3"),
        (np.zeros((1, SIZE, SIZE, 3), np.float32), "image 0: its values are not whole numbers from 0 to 255"),
        ({"picture": [FILE]}, "with a column 'image', got columns picture"),
        (pd.DataFrame({"picture": [FILE]}), "with a column 'image', got columns picture"),
        (7, "send an array of uint8 images N x H x W x 3, .*, got int"),
        ([], "a request holds 1 to 1,024 images, this one 0"),
    ],
    ids=["size", "float", "dictionary", "table", "number", "nothing"],
)
def test_what_python_may_not_send(registry: Registry, given: object, told: str) -> None:
    model = mlflow.pyfunc.load_model(str(folder_of(registry)))
    with pytest.raises(MlflowException, match=told):
        model.predict(given)


def test_a_version_registered_before_still_answers(registry: Registry, tmp_path: Path) -> None:
    """Its own code takes tables alone, and its signature says so."""
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    folder = tmp_path / "model"
    shutil.copytree(folder_of(registry), folder)
    code = (folder / "served_model.py").read_text().replace("images_of(model_input)", 'list(model_input["image"])')
    (folder / "served_model.py").write_text(code)
    model = Model.load(str(folder))
    model.signature = ModelSignature(inputs=Schema([ColSpec(AnyType(), "image")]))  # type: ignore[no-untyped-call]
    hashes = model.flavors[mlflow.pyfunc.FLAVOR_NAME]["files_sha256"]
    hashes["served_model.py"] = hashlib.sha256(code.encode()).hexdigest()
    model.save(str(folder / "MLmodel"))
    client = TestClient(scoring_server.init(mlflow.pyfunc.load_model(str(folder))))
    (prediction,) = client.post("/invocations", json={"instances": [{"image": IMAGE}]}).json()["predictions"]
    assert prediction["class"] == "lime"
