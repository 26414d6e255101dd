"""Single parts against their formulas or timm's modules."""

from __future__ import annotations

from typing import Any

import pytest
import timm.layers
import torch
from torch import nn
from torch.nn import functional as F

from resnet_core.config.variants import Variant
from resnet_core.models.activations import activation
from resnet_core.models.attention import Cbam, EfficientChannelAttention, SqueezeExcitation
from resnet_core.models.convs import BlurConv2d, conv
from resnet_core.models.plan import BlockPlan
from resnet_core.models.shortcuts import projection
from tests.resnet_core.models.conftest import build, small

ACTIVATIONS = {
    "relu": lambda x: x.clamp(min=0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "prelu": lambda x: torch.where(x > 0, x, 0.25 * x),
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "mish": lambda x: x * torch.tanh(torch.log1p(torch.exp(x))),
    "hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "elu": lambda x: torch.where(x > 0, x, torch.expm1(x)),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kind: Any) -> None:
    x = torch.linspace(-5, 5, 41).view(1, 1, 41)
    expected = ACTIVATIONS[kind](x)
    torch.testing.assert_close(activation(kind, 1)(x.clone()), expected)
    assert not activation(kind, 1)(torch.zeros(1, 1, 1)).any()


def test_prelu_has_a_slope_per_channel() -> None:
    model = small(activation="prelu")
    slopes = {name: tuple(value.shape) for name, value in model.named_parameters() if "act" in name}
    assert slopes["act1.weight"] == (16,)
    assert slopes["layer2.0.act2.weight"] == (32,)
    assert len(slopes) == 9


@pytest.mark.parametrize("channels", [16, 64, 256, 512, 2048])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda c: SqueezeExcitation(c, 1 / 16), lambda c: timm.layers.SEModule(c)),
        (lambda c: SqueezeExcitation(c, 1 / 4), lambda c: timm.layers.SEModule(c, rd_ratio=0.25)),
        (EfficientChannelAttention, lambda c: timm.layers.EcaModule(c)),
        (lambda c: Cbam(c, 1 / 16), lambda c: timm.layers.create_attn("cbam", c)),
    ],
    ids=["se", "se a quarter", "eca", "cbam"],
)
def test_attention_is_timm_s(ours: Any, theirs: Any, channels: int) -> None:
    torch.manual_seed(0)
    mine, other = ours(channels), theirs(channels)
    tensors = zip(mine.state_dict().values(), other.state_dict().values(), strict=True)
    with torch.no_grad():
        for target, source in tensors:
            target.copy_(source)
    x = torch.randn(2, channels, 5, 4)
    torch.testing.assert_close(mine(x), other(x), rtol=0, atol=1e-6)


def test_blur_comes_in_front_of_the_strided_convolution() -> None:
    torch.manual_seed(0)
    layer = conv(16, 4, kernel=3, stride=2, blur=True)
    assert isinstance(layer, BlurConv2d)
    assert set(layer.state_dict()) == {"weight"}
    x = torch.randn(1, 16, 7, 6)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    blurred = torch.stack([F.conv2d(x[:, [c]], kernel[None, None], padding=1)[:, 0] for c in range(16)], dim=1)
    torch.testing.assert_close(layer(x), F.conv2d(blurred, layer.weight, stride=2, padding=1))


def test_blur_is_where_ffcv_has_it() -> None:
    blurred = [name for name, module in build("resnet50", num_classes=2, blur_pool=True).named_modules()
               if isinstance(module, BlurConv2d)]  # fmt: skip
    assert blurred == [f"layer{stage}.0.{part}" for stage in (2, 3, 4) for part in ("conv2", "downsample.0")]
    deep = build("resnet18", num_classes=2, blur_pool=True, stem="deep", projection="avgpool")
    assert [name for name, module in deep.named_modules() if isinstance(module, BlurConv2d)] == [
        f"layer{stage}.0.conv1" for stage in (2, 3, 4)
    ]
    narrow = conv(8, 16, kernel=3, stride=2, blur=True), conv(16, 16, kernel=3, blur=True)
    assert {type(layer) for layer in narrow} == {nn.Conv2d}


def test_average_pooling_in_front_of_a_projection() -> None:
    plan = BlockPlan(in_channels=1, width=1, out_channels=1, stride=2)
    shortcut = projection(plan, Variant(depths=(1,), widths=(1,), projection="avgpool")).eval()
    nn.init.ones_(shortcut.get_parameter("1.weight"))
    x = torch.arange(9.0).view(1, 1, 3, 3)
    # whole windows of 2x2, and at the ragged edges the mean of the pixels that there are
    expected = torch.tensor([[[[2.0, 3.5], [6.5, 8.0]]]])
    torch.testing.assert_close(shortcut(x), expected / (1 + 1e-5) ** 0.5)


def test_pre_activation_shares_its_first_activation_with_a_projection_only() -> None:
    model = small(block_order="pre").eval()
    changing, keeping = model.get_submodule("layer2.0"), model.get_submodule("layer2.1")
    nn.init.zeros_(changing.conv2.weight)
    nn.init.zeros_(keeping.conv2.weight)
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(changing(x), changing.downsample(changing.act1(changing.bn1(x))))
    y = torch.randn(1, 32, 4, 4)
    assert torch.equal(keeping(y), y)


def test_deep_stem() -> None:
    stem = build("resnet50d", num_classes=2).conv1
    shapes = [tuple(layer.weight.shape) for layer in stem if isinstance(layer, nn.Conv2d)]
    assert shapes == [(32, 3, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3)]
    assert stem(torch.randn(1, 3, 20, 16)).shape == (1, 64, 10, 8)
