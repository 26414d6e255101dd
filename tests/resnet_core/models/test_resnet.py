from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from resnet_core.config import ModelConfig, ModelName, OptimConfig
from resnet_core.config.variants import VARIANTS, Variant
from resnet_core.models import build_model
from resnet_core.models.plan import BlockPlan, stage_plan
from resnet_core.models.shortcuts import PaddingShortcut
from resnet_core.optim import build_optimizer
from tests.resnet_core.models.conftest import build, small

# name, spatial side and channels before the pooling of a 64-pixel image
SHAPES = [
    ("resnet18", 2, 512),
    ("resnet50", 2, 2048),
    ("plain34", 2, 512),
    ("resnext50_32x4d", 2, 2048),
    ("wide_resnet50_2", 2, 2048),
    ("resnet18d", 2, 512),
    ("resnetrs50", 2, 2048),
    ("resnet20", 16, 64),
    ("plain56", 16, 64),
    ("resnet110", 16, 64),
]
TORCHVISION = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]
KINDS: list[dict[str, Any]] = [
    {},
    {"name": "resnet20", "shortcut": "B"},
    {"name": "resnet20", "shortcut": "C"},
    {"name": "plain20"},
    {"name": "resnet20", "block_order": "pre"},
    {"name": "resnet50", "stride_on": "1x1"},
    {"name": "resnet50", "block_order": "pre", "projection": "avgpool"},
    {"name": "resnet18", "stem": "deep", "projection": "avgpool", "blur_pool": True},
    {"name": "resnet18", "stem": "cifar", "shortcut": "A"},
    {"name": "resnet18", "shortcut": "C", "block_order": "pre"},
    {"name": "resnet20", "stem": "7x7"},
    {"name": "resnetrs50", "blur_pool": True},
    *({"name": "resnet20", "attention": kind} for kind in ("se", "eca", "cbam")),
    *({"activation": kind} for kind in ("prelu", "leaky_relu", "silu", "gelu", "mish", "hardswish", "elu")),
    {"in_channels": 1, "drop_path": 0.3, "dropout": 0.2, "activation_checkpointing": True},
]


def test_every_name_has_a_variant() -> None:
    assert set(VARIANTS) == set(get_args(ModelName))


@pytest.mark.parametrize(("name", "side", "channels"), SHAPES)
def test_shapes(name: ModelName, side: int, channels: int) -> None:
    with torch.device("meta"):
        model = build(name)
        before_pooling: list[torch.Size] = []
        model.get_submodule("avgpool").register_forward_pre_hook(
            lambda _, inputs: before_pooling.append(inputs[0].shape)
        )
        logits = model(torch.empty(2, 3, 64, 64))
    assert before_pooling == [(2, channels, side, side)]
    assert logits.shape == (2, 10 if ModelConfig(name=name).family == "cifar" else 1000)


@pytest.mark.parametrize("name", TORCHVISION)
def test_state_dict_is_torchvision_s(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build(name).state_dict(), getattr(torchvision.models, name)().state_dict()
    assert {key: (value.shape, value.dtype) for key, value in ours.items()} == {
        key: (value.shape, value.dtype) for key, value in theirs.items()
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_outputs_and_one_update_equal_torchvision_s(name: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(num_classes=7)
    ours = build(name, num_classes=7)
    ours.load_state_dict(theirs.state_dict())
    images, labels = torch.randn(3, 3, 48, 40), torch.tensor([1, 6, 0])
    paper = OptimConfig(lr_per_256=0.1, decay_norm_and_bias=True)
    for model, optimizer in (
        (theirs, torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)),
        (ours, build_optimizer(ours, paper)),
    ):
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    mine = ours.state_dict()
    assert [key for key, value in theirs.state_dict().items() if not torch.equal(value, mine[key])] == []
    assert torch.equal(theirs.eval()(images), ours.eval()(images))


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("size", [(28, 28), (33, 20), (1, 1)])
def test_any_image_size(options: dict[str, Any], size: tuple[int, int]) -> None:
    config = ModelConfig(num_classes=5, **options)
    with torch.device("meta"):
        assert build_model(config).eval()(torch.empty(1, config.in_channels, *size)).shape == (1, 5)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    config = ModelConfig(num_classes=4, **options)
    model = build_model(config)
    side = 32 if config.family == "imagenet" else 8
    F.cross_entropy(model(torch.randn(4, config.in_channels, side, side)), torch.arange(4)).backward()
    silent = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert silent == []


def test_features_are_the_stages_outputs() -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 96)
    model = build("resnet18", num_classes=4).eval()
    features = model.features(images)
    assert {name: tuple(feature.shape[1:]) for name, feature in features.items()} == {
        "C2": (64, 16, 24),
        "C3": (128, 8, 12),
        "C4": (256, 4, 6),
        "C5": (512, 2, 3),
    }
    assert torch.equal(model.fc(features["C5"].mean((2, 3))), model(images))
    assert list(build("resnet20").features(torch.randn(1, 3, 8, 8))) == ["C2", "C3", "C4"]


def test_blocks_come_in_the_order_of_depth_by_their_names() -> None:
    model = build("resnet20")
    names = [name for name, _ in model.blocks()]
    assert names == [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in range(3)]
    assert all(model.get_submodule(name) is block for name, block in model.blocks())


def test_option_a_halves_the_image_adds_zero_channels_and_has_no_parameters() -> None:
    shortcut = PaddingShortcut(BlockPlan(in_channels=2, width=5, out_channels=5, stride=2))
    x = torch.arange(32.0).view(1, 2, 4, 4)
    out = shortcut(x)
    assert list(shortcut.parameters()) == []
    assert torch.equal(out[:, :2], torch.tensor([[[[0.0, 2], [8, 10]], [[16, 18], [24, 26]]]]))
    assert torch.equal(out[:, 2:], torch.zeros(1, 3, 2, 2))


def test_options_b_and_c_project_where_the_paper_says() -> None:
    projected = {
        option: [
            name for name, block in build("resnet34", shortcut=option).blocks() if list(block.downsample.parameters())
        ]
        for option in ("A", "B", "C")
    }
    assert projected["A"] == []
    assert projected["B"] == ["layer2.0", "layer3.0", "layer4.0"]
    assert len(projected["C"]) == 16


def test_a_plain_network_is_its_resnet_without_the_sum() -> None:
    torch.manual_seed(0)
    plain, residual = build("plain20"), build("resnet20")
    plain.load_state_dict(residual.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert not torch.equal(plain(images), residual(images))
    for _, block in residual.blocks():
        block.downsample = None
    assert torch.equal(plain(images), residual(images))


@pytest.mark.parametrize(("stride_on", "strides"), [("1x1", (2, 1, 1)), ("3x3", (1, 2, 1))])
def test_the_stride_of_v1_and_of_v1_5(stride_on: str, strides: tuple[int, ...]) -> None:
    block = build("resnet50", num_classes=2, stride_on=stride_on).get_submodule("layer2.0")
    assert tuple(block.get_submodule(f"conv{number}").stride[0] for number in (1, 2, 3)) == strides
    assert build("resnet50", num_classes=2).get_submodule("layer2.0.conv2").stride == (2, 2)


def test_cifar_networks_have_6n_plus_2_weighted_layers() -> None:
    sizes: dict[ModelName, int] = {"resnet20": 3, "resnet56": 9, "resnet110": 18}
    for name, n in sizes.items():
        with torch.device("meta"):
            layers = [module for module in build(name).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        assert len(layers) == 6 * n + 2 == VARIANTS[name].layers


def test_stage_plan_of_resnet50() -> None:
    plan = stage_plan(VARIANTS["resnet50"])
    assert [len(stage) for stage in plan] == [3, 4, 6, 3]
    assert plan[0][0] == BlockPlan(in_channels=64, width=64, out_channels=256, stride=1)
    assert plan[1][0] == BlockPlan(in_channels=256, width=128, out_channels=512, stride=2)
    assert [block.keeps_shape for block in plan[0]] == [False, True, True]


@pytest.mark.parametrize(("options", "last"), [({}, "bn3.weight"), ({"block_order": "pre"}, "conv3.weight")])
def test_zero_init_makes_every_residual_branch_start_at_zero(options: dict[str, Any], last: str) -> None:
    model = build("resnet50", num_classes=3, zero_init_last=True, **options)
    zeros = [key for key, value in model.named_parameters() if key.endswith("weight") and not value.any()]
    assert len(zeros) == 16
    assert all(key.endswith(last) for key in zeros)
    assert all(not block.last_norm.weight.any() for _, block in model.blocks())


def test_the_last_biases_start_at_the_classes_prior() -> None:
    assert build("resnet20", num_classes=8, prior_bias=True).fc.bias.tolist() == pytest.approx([-math.log(8)] * 8)


@pytest.mark.parametrize("order", ["post", "pre"])
def test_a_branch_that_starts_at_zero_learns_from_the_first_step(order: str) -> None:
    model = build("resnet20", zero_init_last=True, block_order=order)
    F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
    assert [name for name, block in model.blocks() if not block.last_norm.weight.grad.any()] == []


def test_he_initialization_is_fan_out() -> None:
    torch.manual_seed(0)
    weight = build("resnet18").get_parameter("layer4.1.conv2.weight")
    assert float(weight.detach().std()) == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_a_model_without_its_number_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.num_classes must be at least 1"):
        build_model(ModelConfig(name="resnet20"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shortcut": "none"}, "model.shortcut must be one of A, B, C: got 'none'"),
        ({"attention": "cbm"}, "model.attention must be one of none, se, eca, cbam: got 'cbm'"),
        ({"activation": "tanh"}, "model.activation must be one of relu, prelu, .*: got 'tanh'"),
        ({"drop_path": 1.0}, r"model.drop_path must be in \[0, 1\): got 1.0"),
        ({"dropout": -0.1}, r"model.dropout must be in \[0, 1\): got -0.1"),
        ({"in_channels": 0}, "model.in_channels must be at least 1: got 0"),
        ({"name": "plain34", "shortcut": "A"}, "model.shortcut must be \"\" for a plain network: got 'A'"),
        ({"name": "plain34", "drop_path": 0.1}, "model.drop_path must be 0 for a plain network: got 0.1"),
        ({"name": "resnet34", "stride_on": "1x1"}, 'model.stride_on must be "" for a network of basic blocks'),
        ({"name": "resnet20", "projection": "avgpool"}, 'model.projection must be "" with shortcut A, which has no'),
    ],
)
def test_values_that_could_not_apply_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ModelConfig(**values)


def test_a_recipe_s_keys_replace_fields_of_the_name() -> None:
    config = ModelConfig(name="resnet50d", attention="eca", stride_on="1x1", activation="silu", in_channels=1)
    assert config.variant == Variant(
        depths=(3, 4, 6, 3),
        block="bottleneck",
        stem="deep",
        projection="avgpool",
        attention="eca",
        stride_on="1x1",
        activation="silu",
        in_channels=1,
    )
    assert ModelConfig(name="resnet18", stem="cifar").variant.stem_pool == "none"
    assert ModelConfig(name="resnet20", stem="7x7").variant.stem_pool == "max"
    assert ModelConfig(name="resnetrs50", stem="7x7").variant.stem_pool == "conv"


def test_a_network_is_compiled_and_exported_to_the_same_function() -> None:
    model = small(attention="eca", blur_pool=True).eval()
    images = torch.randn(2, 3, 16, 16)
    expected = model(images)
    exported = torch.export.export(model, (images,))
    torch.testing.assert_close(exported.module()(images), expected)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)
