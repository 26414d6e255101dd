"""What a run says before it costs anything: three lines of what it is, and one for each likely disappointment."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from infra.proportions import Paired
from infra.registry.gate import least_images
from pipelines.config.recipe import Recipe, build_recipe
from pipelines.data.prepare.report import REPORT, PrepareReport
from pipelines.training.preview import data_warnings, summary, warnings
from tests.pipelines.conftest import COLOURS, SIZE, Coloured, coloured


def recipe_of(data: Coloured, **settings: Any) -> Recipe:
    enough = {"optim.global_batch_size": 1, "schedule.length": 2}
    return build_recipe({}, {**data.recipe, **enough, **{k.replace("__", "."): v for k, v in settings.items()}})


def warned(data: Coloured, **settings: Any) -> list[str]:
    lines = warnings(recipe_of(data, **settings), data.store, data.manifest)
    assert all(line.startswith("warning: ") for line in lines)
    return [line.removeprefix("warning: ") for line in lines]


def test_three_lines_say_data_model_and_run(colours: Coloured) -> None:
    recipe = recipe_of(colours, run__name="first", optim__global_batch_size=10, run__num_workers=2)
    data, model, run = summary(recipe, colours.manifest)
    splits = "30 train, 30 test images of 3 classes, stored as the original files"
    assert data.startswith(f"data        {colours.manifest.name} at ") and data.endswith(splits)
    assert model == f"model       resnet20: 0.269 M parameters, 10 M multiply-adds at {SIZE} px"
    told = "6 steps, 2 epochs of 3, batch 10, peak rate 0.00391, 2 workers, precision auto"
    assert run == f"run         first: {told}"


def test_a_run_with_nothing_to_say_says_nothing(colours: Coloured) -> None:
    assert warned(colours) == []


def test_few_steps_an_epoch_are_said_with_a_batch_that_makes_more(colours: Coloured) -> None:
    (line,) = warned(colours, optim__global_batch_size=15)
    assert line.startswith("optim.global_batch_size = 15 makes 2 steps an epoch") and "=8" in line
    (line,) = warned(colours, optim__global_batch_size=64)
    assert line.startswith("optim.global_batch_size = 64 is more than the 30 training images")
    (line,) = warned(colours, optim__global_batch_size=8)
    assert line.endswith("more images would help")


def test_enlarged_images_are_said(colours: Coloured) -> None:
    (line,) = warned(colours, data__image_size=4 * SIZE)
    assert line.startswith(f"data.image_size = {4 * SIZE} enlarges the stored images (shorter side {SIZE} px")
    assert "16.0 times the compute" in line


def test_test_images_too_few_for_the_gate_are_said_with_how_many_would_do(colours: Coloured) -> None:
    (line,) = warned(colours, run__register_as="colours")
    assert line.startswith("30 test images are too few for run.gate_margin = 0.01") and "268" in line
    assert warned(colours, run__register_as="colours", run__gate_margin=0.5) == []


@pytest.mark.parametrize("margin", [0.005, 0.01, 0.05])
def test_the_images_that_the_gate_needs_are_those_at_which_it_promotes_an_equal(margin: float) -> None:
    least = least_images(margin)
    bounds = [Paired(wins=0, losses=0, count=count).lower_bound() for count in (least - 1, least)]
    assert bounds[0] <= -margin < bounds[1]
    often = least_images(margin, differing=0.1)
    half = round(often * 0.05)
    assert Paired(wins=half, losses=half, count=often).lower_bound() == pytest.approx(-margin, rel=0.06)


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        ([1, 10, 19], [10, 10, 10], "1 class (azure) with one training image or none"),
        ([1, 1, 1], [1, 1, 1], "3 classes (azure, lime, scarlet) with one training image or none"),
        ([10, 10, 10], [15, 15, 0], "1 class (scarlet) without a test image"),
    ],
)
def test_classes_with_too_few_images_are_named(
    colours: Coloured, tmp_path: Path, train: list[int], test: list[int], told: str
) -> None:
    data = coloured(tmp_path, COLOURS, per_class=4)
    report = PrepareReport(
        images=60, kinds={}, leaked=0, repeated=0, rejected=0, listing="", classes={"train": train, "test": test}
    )
    data.store.write(REPORT, json.dumps(dataclasses.asdict(report)).encode())
    (line,) = data_warnings(data.store, data.manifest)
    assert line.startswith(f"warning: {told}")


def test_one_class_is_said(tmp_path: Path) -> None:
    data = coloured(tmp_path, {"azure": COLOURS["azure"]}, per_class=4)
    (line,) = data_warnings(data.store, data.manifest)
    assert line.startswith("warning: there is only one class, azure")
