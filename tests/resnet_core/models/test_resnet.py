from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from resnet_core.config import ModelConfig, ModelName, OptimConfig
from resnet_core.models.resnet import VARIANTS, BlockPlan, PaddingShortcut, build_model, stage_plan
from resnet_core.optim import build_optimizer

# name, parameters, spatial side and channels before the pooling of a 64-pixel image
TABLE = [
    ("resnet18", 11_689_512, 2, 512),
    ("resnet34", 21_797_672, 2, 512),
    ("resnet50", 25_557_032, 2, 2048),
    ("resnet101", 44_549_160, 2, 2048),
    ("resnet152", 60_192_808, 2, 2048),
    ("resnet20", 269_722, 16, 64),
    ("resnet32", 464_154, 16, 64),
    ("resnet44", 658_586, 16, 64),
    ("resnet56", 853_018, 16, 64),
    ("resnet110", 1_727_962, 16, 64),
    ("resnet1202", 19_421_274, 16, 64),
]
TORCHVISION = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


def build(name: Any, num_classes: int = 0, **options: Any) -> nn.Module:
    classes = num_classes or (10 if ModelConfig(name=name).family == "cifar" else 1000)
    return build_model(ModelConfig(name=name, num_classes=classes, **options))


def test_every_name_has_a_variant_and_a_row() -> None:
    assert set(VARIANTS) == set(get_args(ModelName)) == {name for name, *_ in TABLE}


@pytest.mark.parametrize(("name", "parameters", "side", "channels"), TABLE)
def test_published_size_and_shapes(name: str, parameters: int, side: int, channels: int) -> None:
    with torch.device("meta"):
        model = build(name)
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
        before_pooling: list[torch.Size] = []
        model.get_submodule("avgpool").register_forward_pre_hook(
            lambda _, inputs: before_pooling.append(inputs[0].shape)
        )
        logits = model(torch.empty(2, 3, 64, 64))
    assert before_pooling == [(2, channels, side, side)]
    assert logits.shape == (2, 1000 if name in TORCHVISION else 10)


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


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20"])
@pytest.mark.parametrize("size", [(28, 28), (33, 20), (1, 1)])
def test_any_image_size(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        assert build(name, num_classes=5).eval()(torch.empty(1, 3, *size)).shape == (1, 5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20"])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = build(name, num_classes=4)
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    silent = [key for key, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert silent == []


def test_option_a_halves_the_image_adds_zero_channels_and_has_no_parameters() -> None:
    shortcut = PaddingShortcut(BlockPlan(in_channels=2, width=5, out_channels=5, stride=2))
    x = torch.arange(32.0).view(1, 2, 4, 4)
    out = shortcut(x)
    assert list(shortcut.parameters()) == []
    assert torch.equal(out[:, :2], torch.tensor([[[[0.0, 2], [8, 10]], [[16, 18], [24, 26]]]]))
    assert torch.equal(out[:, 2:], torch.zeros(1, 3, 2, 2))


def test_cifar_networks_have_6n_plus_2_weighted_layers() -> None:
    for name, n in (("resnet20", 3), ("resnet56", 9), ("resnet110", 18)):
        with torch.device("meta"):
            layers = [module for module in build(name).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        assert len(layers) == 6 * n + 2


def test_stage_plan_of_resnet50() -> None:
    plan = stage_plan(depths=(3, 4, 6, 3), widths=(64, 128, 256, 512), stem_channels=64, expansion=4)
    assert [len(stage) for stage in plan] == [3, 4, 6, 3]
    assert plan[0][0] == BlockPlan(in_channels=64, width=64, out_channels=256, stride=1)
    assert plan[1][0] == BlockPlan(in_channels=256, width=128, out_channels=512, stride=2)
    assert [block.keeps_shape for block in plan[0]] == [False, True, True]


def test_zero_init_makes_every_residual_branch_start_at_zero() -> None:
    model = build("resnet50", num_classes=3, zero_init_last=True)
    zeros = [key for key, value in model.named_parameters() if key.endswith("weight") and not value.any()]
    assert len(zeros) == 16
    assert all(key.endswith("bn3.weight") for key in zeros)


def test_he_initialization_is_fan_out() -> None:
    torch.manual_seed(0)
    weight = build("resnet18").get_parameter("layer4.1.conv2.weight")
    assert float(weight.detach().std()) == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_a_model_without_its_number_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.num_classes must be at least 1"):
        build_model(ModelConfig(name="resnet20"))
