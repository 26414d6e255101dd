"""Output strides 8 and 16: the same weights give the same values, at more positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from resnet_core.config import VARIANTS, ModelConfig
from resnet_core.models import from_torchvision, load_weights
from resnet_core.models.shortcuts import DilatedAveragePool
from tests.resnet_core.models.conftest import build, randomize_norms, small

KINDS: dict[str, dict[str, Any]] = {
    "basic": {},
    "bottleneck": {"block": "bottleneck"},
    "stride on 1x1": {"block": "bottleneck", "stride_on": "1x1"},
    "groups": {"block": "bottleneck", "groups": 4, "group_width": 16},
    "pre-activation": {"block_order": "pre"},
    "pre-activation bottleneck": {"block": "bottleneck", "block_order": "pre"},
    "padding shortcut": {"shortcut": "A"},
    "projections everywhere": {"shortcut": "C"},
    "no shortcut": {"shortcut": "none"},
    "average pooling": {"projection": "avgpool"},
    "average pooling, pre-activation": {"projection": "avgpool", "block_order": "pre"},
    "blur": {"blur_pool": True},
    "blur, stride on 1x1": {"blur_pool": True, "block": "bottleneck", "stride_on": "1x1"},
}


def four_stages(output_stride: int, **kind: Any) -> Any:
    """Widths of 16 to 32, so that blurred convolutions have enough channels; norms at random."""
    model = small(
        depths=(1, 1, 2, 2), widths=(16, 16, 24, 32), stem="7x7", stem_pool="max", output_stride=output_stride, **kind
    )
    randomize_norms(model)
    return model.double().eval()


@torch.no_grad()
def features(model: Any, side: int) -> dict[str, Tensor]:
    images = torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return model.features(images)


@pytest.mark.parametrize("side", [64, 75])
@pytest.mark.parametrize("kind", KINDS)
def test_a_dilated_network_has_the_values_of_the_strided_one(kind: str, side: int) -> None:
    strided = features(four_stages(32, **KINDS[kind]), side)
    for output_stride in (8, 16):
        dilated = features(four_stages(output_stride, **KINDS[kind]), side)
        for name, expected in strided.items():
            step = max(1, 2 ** int(name[1]) // output_stride)
            torch.testing.assert_close(dilated[name][:, :, ::step, ::step], expected, rtol=0, atol=1e-12, msg=name)
        assert dilated["C5"].shape[-1] == -(-side // output_stride)


@pytest.mark.parametrize(("name", "output_stride"), [("resnet50", 16), ("resnext50_32x4d", 8)])
def test_it_is_torchvisions_with_the_same_tensors(name: str, output_stride: int) -> None:
    torch.manual_seed(0)
    replaced = [False, output_stride == 8, True]
    theirs = getattr(torchvision.models, name)(num_classes=5, replace_stride_with_dilation=replaced)
    randomize_norms(theirs)
    ours = build(name, num_classes=5, output_stride=output_stride)
    load_weights(ours, from_torchvision(theirs.state_dict()))
    images = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18d", "resnet50"])
def test_tensors_and_draws_do_not_change(name: str) -> None:
    models = []
    for output_stride in (32, 8):
        torch.manual_seed(3)
        models.append(build(name, num_classes=2, output_stride=output_stride, attention="cbam").state_dict())
    assert models[0].keys() == models[1].keys()
    assert [key for key in models[0] if not torch.equal(models[0][key], models[1][key])] == []


def test_pixels_of_a_dilated_average() -> None:
    x = torch.arange(4.0).view(1, 1, 1, 4)
    assert DilatedAveragePool(1)(x).flatten().tolist() == [0.5, 1.5, 2.5, 3.0]
    assert DilatedAveragePool(2)(x).flatten().tolist() == [1.0, 2.0, 2.0, 3.0]
    assert torch.equal(DilatedAveragePool(9)(x), x)


def test_the_stride_of_a_network() -> None:
    assert [ModelConfig(name="resnet18", output_stride=each).variant.stride for each in (8, 16, 32)] == [8, 16, 32]
    assert {name: variant.stride for name, variant in VARIANTS.items() if variant.stride != 32} == {
        name: 4 for name in VARIANTS if ModelConfig(name=name).family == "cifar"
    }
    assert ModelConfig(name="resnet18", stem="cifar").variant.stride == 8


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": "resnet18", "output_stride": 4}, "model.output_stride must be 8, 16 or 32: got 4"),
        ({"name": "resnet20", "output_stride": 8}, "must be 32 for a network whose last features are 4 times smaller"),
        ({"name": "resnet18", "stem": "cifar", "output_stride": 8}, "must be 32 for a network .* 8 times smaller"),
    ],
)
def test_an_output_stride_without_effect_is_refused(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        ModelConfig(**options)
