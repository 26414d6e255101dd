"""An exported program runs on another device than the one it was exported on; on the CPU its digits stay the same.

Fake tensors stand for a GPU: torch's FakeTensorMode checks, operation by operation, that all tensors are on one device,
and refuses a program that names another. Meta tensors go through the code that users run.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from infra.errors import UserError
from infra.registry.exported_program import Program, file_sha256s, moved, open_program, predict, save_program
from infra.registry.version import FILES_TAG, Version
from infra.registry.versions import ModelFiles
from infra.tracking.client import prepare_environment
from pipelines.evaluation.classifier import ServedClassifier
from resnet_core.config import AugmentConfig, ModelConfig
from resnet_core.models import build_model

SIZE, CLASSES = 32, 10
IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)


class Burnt(nn.Module):
    """Makes tensors while it answers, as no model of ours does: an export notes their device."""

    def forward(self, images_NHWC: Tensor) -> Tensor:
        features_NC = images_NHWC.float().mean((1, 2))
        offsets = torch.arange(3, device=images_NHWC.device) + torch.tensor([0.5, 1.0, 2.0], device=images_NHWC.device)
        probabilities: Tensor = (features_NC + offsets).softmax(1)
        return probabilities


def resnet(config: ModelConfig) -> nn.Module:
    """What is registered: preprocessing and softmax inside."""
    torch.manual_seed(0)
    return ServedClassifier(build_model(config), AugmentConfig())


def with_mean_image() -> nn.Module:
    model = build_model(ModelConfig(name="resnet20", num_classes=CLASSES))
    return ServedClassifier(model, AugmentConfig(pixel_mean=True), torch.rand(SIZE, SIZE, 3))


@pytest.fixture(scope="module", params=["resnet20", "mean image", "burnt"], ids=lambda name: name.replace(" ", "-"))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program as it is registered."""
    torch.set_num_threads(1)
    prepare_environment()
    match request.param:
        case "mean image":
            module = with_mean_image()
        case "burnt":
            module = Burnt()
        case _:
            module = resnet(ModelConfig(name="resnet20", num_classes=CLASSES))
    place = tmp_path_factory.mktemp("model") / "model"
    save_program(Program(module=module, example=IMAGES[:2], metadata={"a": 1}), place, run_id="0" * 32, model_id="m-0")
    return place


def fake(program: torch.export.ExportedProgram) -> FakeTensorMode:
    """Give a program tensors without storage, which can be on any device; return the mode that its graph is of."""
    mode: FakeTensorMode = next(node.meta["val"].fake_mode for node in program.graph.nodes if node.op == "placeholder")
    for kept in (program._state_dict, program._constants):
        for name, value in kept.items():
            if isinstance(value, Tensor):
                kept[name] = mode.from_tensor(value)
    program._example_inputs = None  # real tensors, of no use here
    return mode


def exported(folder: Path) -> torch.export.ExportedProgram:
    return torch.export.load(folder / "data" / "model.pt2")


def answer_on_gpu(program: torch.export.ExportedProgram, *, move: bool) -> Tensor:
    """What it answers to images on a fake GPU."""
    with fake(program):
        module = moved(program, "cuda:0") if move else program.module()
        answer: Tensor = module(torch.empty((7, *IMAGES.shape[1:]), dtype=torch.uint8, device="cuda:0"))
    return answer


def test_a_moved_program_computes_on_the_gpu_from_images_to_probabilities(folder: Path) -> None:
    answer = answer_on_gpu(exported(folder), move=True)
    assert answer.device == torch.device("cuda:0")
    assert (answer.dtype, answer.shape[0]) == (torch.float32, 7)


def test_a_program_that_was_not_moved_refuses_them(folder: Path) -> None:
    with pytest.raises((RuntimeError, AssertionError), match="device"):
        answer_on_gpu(exported(folder), move=False)


def test_the_program_that_users_open_answers_on_its_device(folder: Path) -> None:
    module, metadata = open_program(folder, "meta")
    assert metadata == {"a": 1}
    for size in (1, 6):
        answer = module(torch.empty((size, *IMAGES.shape[1:]), dtype=torch.uint8, device="meta"))
        assert (answer.device.type, answer.shape[0]) == ("meta", size)
    tensors = [*module.parameters(), *module.buffers()]
    assert {tensor.device.type for tensor in tensors} <= {"meta"}


def test_on_the_cpu_the_digits_stay_those_of_mlflows_program(folder: Path) -> None:
    import mlflow.pytorch

    expected = predict(mlflow.pytorch.load_model(str(folder)), IMAGES)
    np.testing.assert_array_equal(predict(open_program(folder)[0], IMAGES), expected)
    # loaded anew and moved to where it is already: the pass changes no operation
    np.testing.assert_array_equal(predict(moved(exported(folder), "cpu"), IMAGES), expected)


def files_of(folder: Path) -> ModelFiles:
    tags = {FILES_TAG: json.dumps(file_sha256s(folder))}
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return ModelFiles(
        version=Version(name="m", number=3, run_id="", tags=tags),
        files={path.relative_to(folder).as_posix(): path.read_bytes() for path in paths},
    )


def test_files_open_where_mlflow_is_out_of_reach(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody is there
    model = files.open()
    assert files.metadata == model.metadata == {"a": 1}
    np.testing.assert_array_equal(model.predict(IMAGES), predict(open_program(folder)[0], IMAGES))


def test_files_that_are_not_those_registered_are_not_opened(folder: Path) -> None:
    files = files_of(folder)
    path = "data/model.pt2"
    changed = files.files[path][:-1] + bytes([files.files[path][-1] ^ 1])
    damaged = ModelFiles(version=files.version, files={**files.files, path: changed})
    with pytest.raises(UserError, match=f"models:/m/3 is not what was registered \\(changed since: {path}\\)"):
        damaged.open()
