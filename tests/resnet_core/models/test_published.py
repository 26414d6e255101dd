"""The published figures, all of them, and the command that prints them."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_core.config import ModelConfig, ModelName
from resnet_core.config.variants import VARIANTS
from resnet_core.models.cost import cost, multiply_adds
from resnet_core.models.published import FIGURES, Figure
from resnet_core.models.resnet import ResNet
from resnet_core.models.table import compare
from tests.resnet_core.models.conftest import small


def of(*sources: str) -> list[Figure]:
    return [figure for figure in FIGURES if figure.source in sources]


def label(figure: Figure) -> str:
    return "-".join((figure.name, figure.source, *figure.changes.values()))


@pytest.mark.parametrize("figure", FIGURES, ids=label)
def test_parameters_are_the_published_ones(figure: Figure) -> None:
    difference = compare(figure.name, figure).parameter_difference
    assert difference == (None if figure.parameters is None and figure.millions is None else 0)


@pytest.mark.parametrize("figure", of("torchvision", "timm"), ids=label)
def test_multiply_adds_are_within_one_percent(figure: Figure) -> None:
    share = compare(figure.name, figure).multiply_add_share
    assert share is not None
    assert abs(share) < (0.01 if figure.source == "timm" else 0.0003)


@pytest.mark.parametrize("figure", [figure for figure in of("paper") if figure.billions], ids=label)
def test_multiply_adds_round_to_the_paper_s(figure: Figure) -> None:
    difference = compare(figure.name, figure).multiply_add_difference
    if figure.name == "resnet50":  # 3.858: the paper prints 3.8
        assert float(difference or 0) == pytest.approx(0.1)
        assert "truncated" in figure.note
    else:
        assert difference == 0


@pytest.mark.parametrize("figure", of("timm"), ids=label)
def test_timm_s_multiply_adds_are_ours_and_two_for_every_value_of_a_norm(figure: Figure) -> None:
    values = 0

    def count(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal values
        values += inputs[0].numel()

    with torch.device("meta"):
        model = ResNet(ModelConfig(name=figure.name, **figure.changes).variant, 1000).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(count)
        total = multiply_adds(model, torch.empty(1, 3, figure.size, figure.size)) + 2 * values
    assert total / 1e9 == pytest.approx(float(figure.billions or 0), abs=0.006)


@pytest.mark.parametrize("figure", of("timm"), ids=label)
def test_the_figures_of_timm_are_those_of_the_installed_timm(figure: Figure) -> None:
    name = figure.note.removeprefix("timm's ") or figure.name
    model = timm.create_model(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == figure.parameters


@pytest.mark.parametrize("figure", of("torchvision"), ids=label)
def test_the_figures_of_torchvision_are_those_of_its_metadata(figure: Figure) -> None:
    for weights in torchvision.models.get_model_weights(figure.name):
        assert weights.meta["num_params"] == figure.parameters
        assert weights.meta["_ops"] == float(figure.billions or 0)


def test_option_a_costs_nothing() -> None:
    names: tuple[ModelName, ...] = ("plain20", "resnet20", "plain110", "resnet110")
    costs = [cost(VARIANTS[name], size=32, num_classes=10) for name in names]
    assert costs[0] == costs[1]
    assert costs[2] == costs[3]


def test_blur_and_attention_are_counted() -> None:
    with torch.device("meta"):
        images = torch.empty(1, 3, 8, 8)
        plain, blurred, attended = (
            multiply_adds(small(**fields).eval(), images) for fields in ({}, {"blur_pool": True}, {"attention": "se"})
        )
    # layer2.0 blurs 16 channels of 8x8 pixels by 9 numbers, in front of its 3x3 and in front of its projection
    assert blurred - plain == 2 * 16 * 8 * 8 * 9
    # 4 blocks of 16 or 32 channels, 8 inside
    assert attended - plain == 2 * (2 * 16 * 8) + 2 * (2 * 32 * 8)


@pytest.mark.parametrize(
    "fields",
    [{"blur_pool": True, "groups": 2, "block": "bottleneck"}, {"attention": "cbam"}, {"attention": "eca"}],
    ids=str,
)
def test_multiply_adds_are_what_torch_counts(fields: dict[str, Any]) -> None:
    model, images = small(**fields).eval(), torch.randn(1, 3, 9, 8)
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert multiply_adds(model, images) == counter.get_total_flops() // 2


def test_the_command_prints_every_network(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("resnet_core", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line} >= set(VARIANTS)
    row = next(line for line in lines if line.startswith("resnet50 ") and "torchvision" in line)
    assert row.split() == [
        "resnet50",
        "50",
        "25,557,032",
        "4.089",
        "torchvision",
        "25,557,032",
        "0",
        "4.089",
        "224",
        "4.089",
        "+0.00%",
    ]
    paper = next(line for line in lines if line.startswith("resnet1202 "))
    assert paper.split() == ["resnet1202", "1202", "19,421,274", "2.829", "paper", "19.4M", "0.0"]
