"""`train.py --dry-run`: figures that can be computed by hand, every check, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from infra.errors import UserError
from infra.storage import LocalStore
from pipelines.config.recipe import Recipe, build_recipe, load_recipe
from pipelines.data.prepare.sources import open_source
from pipelines.estimate import dry_run as module
from pipelines.estimate.calibration import Rates
from pipelines.estimate.checks import checked
from pipelines.estimate.dry_run import DryRunRequest, dry_run
from pipelines.estimate.machines import INSTANCES, REFERENCE_MULTIPLY_ADDS, instance, machines_for
from pipelines.estimate.memory import BLOCK_BYTES, activation_bytes, object_store_bytes, training_memory
from pipelines.estimate.timing import ImageCounts, timing_here, timing_of
from pipelines.training import stream
from resnet_core.config import VARIANTS, ModelConfig
from resnet_core.models import build_model
from resnet_core.models.cost import cost
from tests.pipelines.conftest import written
from tests.pipelines.data.conftest import encoded, picture

ROOT = Path(__file__).parents[3]
IMAGENET = ImageCounts(train=1_281_167, evaluated=50_000, test=50_000, classes=1000, source="as published")


def with_classes(name: str, **changes: object) -> Recipe:
    return build_recipe({}, {**load_recipe(name).flat(), "model.num_classes": 1000, **changes}, where=name)


def photos(tmp_path: Path) -> str:
    """A data set of 36 training images in two classes."""
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(20):
            (tmp_path / "in" / name / f"{number}.jpg").write_bytes(encoded(picture(40, 36, number)))
    store = LocalStore(uri=str(tmp_path / "data"))
    store.write("manifest.json", written(open_source(str(tmp_path / "in"), holdout=0.1), store).to_json().encode())
    return str(tmp_path / "data")


def recipe_for(tmp_path: Path, data: str, **changes: object) -> Recipe:
    small = {"model.name": "resnet20", "data.image_size": 32, "data.eval_resize": 32, "optim.global_batch_size": 4}
    at = {"data.uri": data, "run.home": str(tmp_path / "runs"), "run.num_workers": 2, "schedule.length": 3.0}
    return load_recipe("my_small_images", {**small, **at, **{key: value for key, value in changes.items()}})


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a dry run with given rates instead of timed ones, and return what it prints."""
    from pipelines.estimate import calibration

    rates = Rates(step_s=0.01, decode_s=0.001, slowdown=1.0, note="given")
    monkeypatch.setattr(calibration, "calibrated", lambda *_: rates)

    def run(recipe: Recipe, **request: object) -> list[str]:
        dry_run(recipe, DryRunRequest(**request), Console(soft_wrap=True, highlight=False))  # type: ignore[arg-type]
        return capsys.readouterr().out.splitlines()

    return run


def ray_runs() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def test_the_lines_of_a_run_and_nothing_left_behind(tmp_path: Path, lines) -> None:
    data, began = photos(tmp_path), ray_runs()  # of another test, in the same process
    before = sorted(path for path in tmp_path.rglob("*"))
    found = "\n".join(lines(recipe_for(tmp_path, data), price=2.0))
    assert "36 training images, 4 test images, 2 classes (the data set's)" in found
    assert "27 steps of 4 images, 3 epochs, 108 images, 3 evaluations" in found
    for check in ("data set", "recipe fits the data", "run", "destination", "MLflow", "workers", "storage", "memory"):
        assert f"ok          {check}: " in found, check
    assert "cost        $" in found
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert ray_runs() == began


def test_each_check_that_fails_is_named_and_the_others_are_made(tmp_path: Path, lines, capsys) -> None:
    data = photos(tmp_path)
    with pytest.raises(UserError, match=r"^1 of 8 checks failed, train.py would stop there: recipe fits the data$"):
        lines(recipe_for(tmp_path, data, **{"optim.global_batch_size": 5}))
    assert (
        "FAILED      recipe fits the data: optim.global_batch_size = 5 cannot be divided among"
        in capsys.readouterr().out
    )
    with pytest.raises(UserError, match=r"data set$"):
        lines(recipe_for(tmp_path, str(tmp_path / "nowhere")), images=100, classes=3)
    assert "FAILED      data set: no manifest.json" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"the data$"):
        lines(recipe_for(tmp_path, data, **{"model.init_from": str(tmp_path / "gone.safetensors")}))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="destination"):
        lines(recipe_for(tmp_path, data, **{"run.home": str(tmp_path / "file")}))
    with pytest.raises(UserError, match=r"workers$"):
        lines(recipe_for(tmp_path, data, **{"run.num_workers": 4, "run.cpus_per_worker": 999}))


def test_an_mlflow_that_does_not_answer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    state = checked(recipe_for(tmp_path, photos(tmp_path)))
    assert [check.name for check in state.checks if not check.passed] == ["MLflow"]


def test_without_a_data_set_its_size_is_asked_for(tmp_path: Path, lines) -> None:
    with pytest.raises(UserError, match=r"so its size is not known: prepare it, or give --images and --classes$"):
        lines(recipe_for(tmp_path, str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            ["--instance", "g5.xlargee"],
            "error: --instance g5.xlargee is not known (did you mean g5.xlarge?): known",
        ),
        (["--price", "-1"], "error: --price must be at least 0, got -1.0"),
        (["--images", "-5"], "error: --images must be at least 0, got -5"),
    ],
)
def test_bad_options_are_one_line(options: list[str], error: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "pipelines" / "train.py"), "--dry-run", *options]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (2, "estimating mnist5k")
    assert ran.stderr.startswith(error)
    assert ran.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


# The model


def test_the_reference_of_the_gpus_speeds() -> None:
    assert cost(VARIANTS["resnet50"], size=224, num_classes=1000).multiply_adds == REFERENCE_MULTIPLY_ADDS


def test_a_gpus_published_speed_is_the_estimate_for_the_same_network() -> None:
    recipe = with_classes("torchvision_v1_resnet50", **{"run.num_workers": 1})
    timing = timing_of(recipe, IMAGENET, INSTANCES["p4d.24xlarge"], "raw", half=True)
    assert (timing.limit, timing.rate) == ("device", pytest.approx(2470))
    assert timing.train_s == pytest.approx(90 * IMAGENET.train / 2470, rel=1e-3)
    deeper = with_classes("torchvision_v1_resnet50", **{"run.num_workers": 1, "model.name": "resnet101"})
    work = cost(VARIANTS["resnet101"], size=224, num_classes=1000).multiply_adds / REFERENCE_MULTIPLY_ADDS
    slower = timing_of(deeper, IMAGENET, INSTANCES["p4d.24xlarge"], "raw", half=True)
    assert slower.rate == pytest.approx(2470 / work)
    assert slower.factor > timing.factor  # of another network, less is known


def test_few_cores_limit_a_gpu() -> None:
    recipe = with_classes("torchvision_v1_resnet50", **{"run.num_workers": 1})
    timing = timing_of(recipe, IMAGENET, INSTANCES["g5.xlarge"], "original", half=True)
    assert (timing.limit, timing.rate) == ("decode", 714)


def test_workers_decide_the_number_of_machines() -> None:
    assert [machines_for(instance("p5.48xlarge"), workers) for workers in (1, 8, 9, 64)] == [1, 1, 2, 8]


def test_this_machines_cores_train_and_decode() -> None:
    recipe = with_classes("my_small_images", **{"run.num_workers": 2, "optim.global_batch_size": 32})
    images = ImageCounts(train=1000, evaluated=100, test=100, classes=1000, source="given")
    machine = INSTANCES["g6.xlarge"]  # any machine of two cores
    alone = timing_here(recipe, images, machine, Rates(step_s=0.01, decode_s=1e-6, slowdown=1, note=""), "original")
    assert alone.rate == pytest.approx(0.85 * 2 / 0.01, rel=1e-3)
    both = timing_here(recipe, images, machine, Rates(step_s=0.01, decode_s=0.01, slowdown=1, note=""), "original")
    assert both.rate == pytest.approx(alone.rate / 2, rel=1e-3)


# Memory


@pytest.mark.parametrize(("name", "size"), [("resnet20", 32), ("resnet18", 64), ("resnet50", 64)])
def test_activations_are_what_autograd_keeps(name: str, size: int) -> None:
    """Counted without memory, and on real tensors by their addresses."""
    model = ModelConfig(name=name, num_classes=10)  # type: ignore[arg-type]
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    network = build_model(model)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(2, 3, size, size)).sum()
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 2
    assert activation_bytes(model, size) == pytest.approx(real, rel=0.02)


def test_state_of_a_worker_and_size_of_a_checkpoint() -> None:
    parameters = cost(VARIANTS["resnet50"], size=224, num_classes=1000).parameters * 4
    sgd = training_memory(with_classes("torchvision_v1_resnet50"), 1000, 8, half=False, workers=2)
    assert (sgd.gradients, sgd.optimizer, sgd.exchange, sgd.average) == (parameters, parameters, parameters, 0)
    assert 2 * parameters < sgd.checkpoint < 2.01 * parameters
    lamb = training_memory(with_classes("rsb_a2_resnet50"), 1000, 8, half=True, workers=1)
    assert 2 * parameters <= lamb.optimizer < 2.01 * parameters
    assert lamb.activations == pytest.approx(sgd.activations / 2, rel=0.01)
    averaged = training_memory(
        with_classes("torchvision_v1_resnet50", **{"optim.ema_decay": 0.99}), 1000, 8, half=False, workers=1
    )
    assert averaged.average > parameters


def test_blocks_have_the_sizes_of_the_stream() -> None:
    assert BLOCK_BYTES == stream._BLOCK_BYTES
    assert object_store_bytes(256, 224, workers=1, tasks=1) == 256 * 3 * 224**2 * 8
    assert object_store_bytes(1, 32, workers=2, tasks=3) == BLOCK_BYTES[0] * (2 * 3 + 3 * 5)


def test_a_batch_that_a_gpu_cannot_hold_is_a_failed_check(tmp_path: Path, lines, capsys) -> None:
    recipe = recipe_for(
        tmp_path,
        str(tmp_path / "nowhere"),
        **{"model.name": "resnet152", "data.image_size": 224, "optim.global_batch_size": 1024, "run.num_workers": 1},
    )
    with pytest.raises(UserError, match=r"data set, memory$"):
        lines(recipe, instance="g4dn.xlarge", images=1000, classes=10)
    assert "GiB, and the T4 has 16: lower compute.microbatch_size" in capsys.readouterr().out


def test_published_sizes_are_those_of_the_shipped_recipes() -> None:
    folders = {load_recipe(name).data.uri.rpartition("/")[2].replace("-", "_") for name in ("cifar10_resnet20",)}
    assert folders <= set(module.PUBLISHED)
