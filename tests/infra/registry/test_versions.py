"""A model that goes into the registry comes out the same, or not at all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from infra.errors import UserError
from infra.registry.champion import champion, promote
from infra.registry.gate import Score
from infra.registry.version import read_file
from infra.registry.versions import Candidate, Version, load, register
from infra.s3_server import S3Server
from infra.tracking.client import Tracking, connect
from infra.tracking.metric_point import MetricPoint
from infra.tracking.tracker import RunInfo, Tracker

SCORE = Score(accuracy=0.985, loss=0.05, count=1000, data_digest="d" * 64)


class Classifier(nn.Module):
    """uint8 NHWC in, probabilities out, with dropout and batch norm that evaluation must switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 10)

    def forward(self, images_NHWC: Tensor) -> Tensor:
        images_NCHW = images_NHWC.permute(0, 3, 1, 2).float() / 255
        features_NC = self.drop(self.norm(self.conv(images_NCHW))).relu().mean((2, 3))
        probabilities: Tensor = self.head(features_NC).softmax(1)
        return probabilities


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def candidate(tracking: Tracking) -> Candidate:
    """The best checkpoint of a finished run, at its step 20."""
    tracker = Tracker.start(tracking, RunInfo(experiment="digits", name="demo"), warn=print)
    for step in (10, 20):
        tracker.log(
            MetricPoint(step=step, time_ms=step, metrics={"test/accuracy": 0.9 + step / 1000, "train/loss": 0.1})
        )
    assert tracker.finish("FINISHED", timeout_s=30)
    torch.manual_seed(0)
    return Candidate(
        name="digits",
        run_id=tracker.run_id,
        step=20,
        module=Classifier(),
        example=np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3), dtype=np.uint8),
        score=SCORE,
        checkpoint_sha256="c" * 64,
        recipe_digest="r" * 64,
        metadata={"classes": [str(digit) for digit in range(10)]},
        tags={"code_version": "abc"},
    )


def test_out_comes_what_went_in(tracking: Tracking, candidate: Candidate) -> None:
    module = candidate.module.train()
    version = register(tracking, candidate)
    assert module.training
    assert version.uri == "models:/digits/1"
    assert version.score == SCORE
    assert version.export_difference <= 1e-4
    assert version.tags["code_version"] == "abc"
    assert version.tags["checkpoint_sha256"] == "c" * 64
    assert version.tags["recipe_digest"] == "r" * 64

    model = load(tracking, version.uri)
    assert model.metadata["classes"][3] == "3"
    assert model.version == version
    images = np.random.default_rng(1).integers(0, 256, (7, 28, 28, 3), dtype=np.uint8)
    probabilities = model.predict(images)
    assert probabilities.shape == (7, 10)
    assert probabilities.dtype == np.float32
    with torch.inference_mode():
        expected = module.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(model.predict(images[:1]), expected[:1], atol=1e-5)


def test_the_model_belongs_to_its_run_and_doubles_no_metric(tracking: Tracking, candidate: Candidate) -> None:
    register(tracking, candidate)
    client = connect(tracking)
    outputs = client.get_run(candidate.run_id).outputs
    assert outputs is not None
    (output,) = outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.status == "READY"
    assert model.metrics is not None
    assert {metric.key: metric.value for metric in model.metrics} == {"test/accuracy": 0.92, "train/loss": 0.1}
    for key in ("test/accuracy", "train/loss"):
        assert [point.step for point in client.get_metric_history(candidate.run_id, key)] == [10, 20]


def test_the_signature_leaves_the_batch_open(tracking: Tracking, candidate: Candidate) -> None:
    from mlflow.models import Model

    version = register(tracking, candidate)
    signature = Model.load(str(_files(tracking, version))).signature
    (image,), (probabilities,) = signature.inputs.inputs, signature.outputs.inputs
    assert (image.type, image.shape) == (np.dtype("uint8"), (-1, 28, 28, 3))
    assert (probabilities.type, probabilities.shape) == (np.dtype("float32"), (-1, 10))


def test_a_checkpoint_has_one_version(tracking: Tracking, candidate: Candidate) -> None:
    first = register(tracking, candidate)
    assert register(tracking, candidate) == first
    other = register(tracking, dataclasses.replace(candidate, checkpoint_sha256="e" * 64))
    assert (first.number, other.number) == (1, 2)


def test_the_champion_is_who_was_promoted(tracking: Tracking, candidate: Candidate) -> None:
    assert champion(tracking, "digits") is None
    version = register(tracking, candidate)
    assert champion(tracking, "digits") is None
    promote(tracking, version)
    assert champion(tracking, "digits") == version
    assert load(tracking, "models:/digits@champion").version == version


def test_a_module_that_answers_otherwise_once_exported_is_refused(tracking: Tracking, candidate: Candidate) -> None:
    class Fickle(nn.Module):
        """Half as sure once it is traced."""

        def forward(self, images_NHWC: Tensor) -> Tensor:
            sure = images_NHWC.float().mean((1, 2))
            return sure * 0.5 if torch.compiler.is_exporting() else sure

    with pytest.raises(RuntimeError, match="probabilities differ by"):
        register(tracking, dataclasses.replace(candidate, module=Fickle()))
    assert connect(tracking).search_registered_models() == []


def test_an_example_of_one_image_would_fix_the_batch(tracking: Tracking, candidate: Candidate) -> None:
    with pytest.raises(ValueError, match="example needs at least 2 images"):
        register(tracking, dataclasses.replace(candidate, example=candidate.example[:1]))


def _files(tracking: Tracking, version: Version) -> Path:
    uri = connect(tracking).get_model_version_download_uri(version.name, str(version.number))
    return Path(uri.removeprefix("file://"))


def test_changed_bytes_are_not_loaded(tracking: Tracking, candidate: Candidate) -> None:
    version = register(tracking, candidate)
    program = _files(tracking, version) / "data/model.pt2"
    data = bytearray(program.read_bytes())
    data[len(data) // 2] ^= 1
    program.write_bytes(data)
    with pytest.raises(
        UserError, match=r"models:/digits/1 is not what was registered \(changed since: data/model.pt2\)"
    ):
        load(tracking, "models:/digits/1")


def test_an_added_file_is_not_loaded(tracking: Tracking, candidate: Candidate) -> None:
    version = register(tracking, candidate)
    (_files(tracking, version) / "data/model.pth").write_bytes(b"a pickle")
    with pytest.raises(UserError, match=r"changed since: data/model.pth"):
        load(tracking, version.uri)


def test_a_pickle_is_not_loaded_even_with_its_hashes(tracking: Tracking, candidate: Candidate) -> None:
    """Somebody who can write the registry's tags still cannot make us run a pickle."""
    from mlflow.exceptions import MlflowException

    from infra.registry.exported_program import file_sha256s

    version = register(tracking, candidate)
    folder = _files(tracking, version)
    torch.save({"weights": torch.zeros(1)}, folder / "data/model.pth")
    (folder / "data/pickle_module_info.txt").write_text("pickle")
    hashes = json.dumps(file_sha256s(folder))
    connect(tracking).set_model_version_tag("digits", "1", "files_sha256", hashes)
    with pytest.raises(MlflowException, match="pickle is disallowed"):
        load(tracking, version.uri)


def test_images_of_another_shape_or_type_are_refused(tracking: Tracking, candidate: Candidate) -> None:
    model = load(tracking, register(tracking, candidate).uri)
    for images in (
        np.zeros((2, 32, 32, 3), np.uint8),
        np.zeros((2, 28, 28), np.uint8),
        np.zeros((28, 28, 3), np.uint8),
    ):
        with pytest.raises(UserError, match=r"images must be uint8 of N x 28x28x3, got uint8 of"):
            model.predict(images)
    with pytest.raises(UserError, match=r"got float32 of 2x28x28x3"):
        model.predict(np.zeros((2, 28, 28, 3), np.float32))


@pytest.mark.parametrize(
    ("image", "classes", "line"),
    [
        ((28, 28, 3), 11, r"answers one image in the shape \(1, 10\), its signature promises \(1, 11\)"),
        ((20, 20, 4), 10, r"models:/digits/1 does not take images of \(20, 20, 4\): "),
        ((28,), 10, "the signature of models:/digits/1 is not that of an image classifier"),
    ],
)
def test_a_program_of_other_shapes_is_not_loaded_even_with_its_hashes(
    tracking: Tracking, candidate: Candidate, image: tuple[int, ...], classes: int, line: str
) -> None:
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from infra.registry.exported_program import file_sha256s

    version = register(tracking, candidate)
    folder = _files(tracking, version)
    model = Model.load(str(folder))
    model.signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *image))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, classes))]),
    )
    model.save(str(folder / "MLmodel"))
    connect(tracking).set_model_version_tag("digits", "1", "files_sha256", json.dumps(file_sha256s(folder)))
    with pytest.raises(UserError, match=line):
        load(tracking, version.uri)


def test_a_file_beside_the_program_is_read_back_and_checked(tracking: Tracking, candidate: Candidate) -> None:
    version = register(tracking, dataclasses.replace(candidate, files={"answers.txt": b"3, 1, 4"}))
    assert read_file(tracking, version, "answers.txt") == b"3, 1, 4"
    assert read_file(tracking, version, "questions.txt") is None
    assert load(tracking, version.uri).version == version
    (_files(tracking, version) / "answers.txt").write_bytes(b"3, 1, 5")
    with pytest.raises(UserError, match=r"changed since: answers.txt"):
        read_file(tracking, version, "answers.txt")


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("models:/letters@champion", "has no model 'letters'; it has: digits"),
        ("models:/Digit/1", r"has no model 'Digit' \(did you mean digits\?\); it has: digits"),
        ("models:/digits@champion", "the model 'digits' at sqlite:.* has no alias 'champion'"),
        ("models:/digits/7", "the model 'digits' at sqlite:.* has no version 7"),
        ("digits", "'digits' is not a registered model: give models:/NAME@champion"),
    ],
)
def test_who_is_not_there(tracking: Tracking, uri: str, line: str) -> None:
    connect(tracking).create_registered_model("digits")
    with pytest.raises(UserError, match=line):
        load(tracking, uri)


def test_a_model_of_somebody_else_is_not_loaded(tracking: Tracking, candidate: Candidate) -> None:
    client = connect(tracking)
    client.create_registered_model("digits")
    client.create_model_version("digits", "/somewhere", candidate.run_id)
    with pytest.raises(UserError, match="this project did not register it"):
        load(tracking, "models:/digits/1")


def test_models_kept_in_s3(s3: S3Server, tracking: Tracking, candidate: Candidate) -> None:
    tracking = Tracking(uri=tracking.uri, artifact_location=f"s3://{s3.bucket}/mlflow")
    tracker = Tracker.start(tracking, RunInfo(experiment="in-s3", name="demo"), warn=print)
    tracker.text("notes.txt", "hello")
    assert tracker.finish("FINISHED", timeout_s=30)
    version = register(tracking, dataclasses.replace(candidate, run_id=tracker.run_id))
    assert load(tracking, version.uri).predict(candidate.example).shape == (2, 10)


def test_models_kept_by_a_server(
    mlflow_server: Callable[[Path, int], AbstractContextManager[str]],
    free_port: int,
    candidate: Candidate,
    tmp_path: Path,
) -> None:
    with mlflow_server(tmp_path, free_port) as url:
        served = Tracking(uri=url)
        tracker = Tracker.start(served, RunInfo(experiment="served", name="demo"), warn=print)
        assert tracker.finish("FINISHED", timeout_s=30)
        promote(served, register(served, dataclasses.replace(candidate, run_id=tracker.run_id)))
        assert load(served, "models:/digits@champion").predict(candidate.example).shape == (2, 10)
