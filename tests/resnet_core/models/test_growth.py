"""Depth grown in place: the function stays, the new blocks learn, and the result is the deeper network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_core.models import grow
from tests.resnet_core.models.conftest import build, randomize_norms, small

DEPTHS = (3, 5)
KINDS: list[dict[str, Any]] = [
    {},
    {"shortcut": "A"},
    {"block": "bottleneck"},
    {"block": "bottleneck", "groups": 4, "group_width": 16, "stride_on": "1x1", "blur_pool": True},
    {"attention": "se"},
    {"attention": "cbam"},
    {"block_order": "pre"},
    {"block_order": "pre", "block": "bottleneck", "attention": "eca", "activation": "silu"},
    {"block_order": "pre", "activation": "prelu"},
]


def grown(model: Any, seed: int = 1) -> list[nn.Parameter]:
    return grow(model, DEPTHS, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("fields", KINDS, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_function_is_unchanged(fields: dict[str, Any], training: bool) -> None:
    before = small(**fields)
    randomize_norms(before)
    after = copy.deepcopy(before)
    grown(after)
    images = torch.randn(4, 3, 12, 10)
    logits, expected = after.train(training)(images), before.train(training)(images)
    assert torch.equal(logits, expected)
    assert [len(after.get_submodule(stage)) for stage in after.stages] == list(DEPTHS)
    statistics = after.state_dict()
    changed = [name for name, tensor in before.state_dict().items() if not torch.equal(tensor, statistics[name])]
    assert changed == []


@pytest.mark.parametrize("fields", [{}, {"block_order": "pre"}], ids=str)
def test_new_blocks_learn_and_the_old_gradients_are_unchanged(fields: dict[str, Any]) -> None:
    before = small(**fields).train()
    after = copy.deepcopy(before)
    new = grown(after)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
    for model in (before, after):
        F.cross_entropy(model(images), labels).backward()
    gradients = {name: parameter.grad for name, parameter in after.named_parameters()}
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
    scales = [block.last_norm.weight for _, block in after.blocks() if block.last_norm.weight in set(new)]
    assert len(scales) == 4
    assert all(scale.grad.any() and not scale.detach().any() for scale in scales)


def test_it_becomes_the_network_that_is_built_that_deep() -> None:
    model, deep = build("resnet20", drop_path=0.3), build("resnet56", drop_path=0.3)
    new = grow(model, (9, 9, 9))
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == {
        key: tensor.shape for key, tensor in deep.state_dict().items()
    }
    assert model.variant == deep.variant
    assert torch.equal(model.drop_rates_L, deep.drop_rates_L)
    kept = {name for name, _ in build("resnet20").named_parameters()}
    expected = [parameter for name, parameter in model.named_parameters() if name not in kept]
    assert [id(parameter) for parameter in new] == [id(parameter) for parameter in expected]


def test_the_generator_alone_decides_and_the_global_one_stays() -> None:
    first, second, other = small(), small(), small()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = grown(first)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)
    two, three = grown(second), grown(other, seed=2)
    assert all(torch.equal(left, right) for left, right in zip(one, two, strict=True))
    assert not torch.equal(one[0], three[0])
    # not two equal blocks, and the paper's deviation
    convolutions = [parameter for parameter in one if parameter.dim() == 4]
    assert not torch.equal(convolutions[-1], convolutions[-3])
    assert float(convolutions[-1].detach().std()) == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)


def test_new_blocks_take_type_layout_and_mode_from_the_old() -> None:
    model = small().double().eval().to(memory_format=torch.channels_last)
    new = grown(model)
    assert {parameter.dtype for parameter in new} == {torch.float64}
    assert all(parameter.is_contiguous(memory_format=torch.channels_last) for parameter in new if parameter.dim() == 4)
    assert not any(module.training for module in model.modules())
    assert model.train()(torch.randn(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64


def test_nothing_to_grow() -> None:
    model = small()
    assert grow(model, (2, 2)) == []


@pytest.mark.parametrize(
    ("fields", "depths", "message"),
    [
        ({}, (2,), r"depths must be 2 numbers, none below the present \[2, 2\]: got \[2\]"),
        ({}, (3, 1), r"depths must be 2 numbers, none below the present \[2, 2\]: got \[3, 1\]"),
        ({"shortcut": "none"}, (3, 3), "model.shortcut .*: a plain network has no shortcuts"),
        ({"shortcut": "C"}, (3, 3), "model.shortcut .*: with option C every block projects its input"),
        ({"activation": "silu"}, (3, 3), 'model.activation must be "relu" to grow .* apply silu a second time'),
    ],
)
def test_growth_that_would_change_the_function_is_refused(
    fields: dict[str, Any], depths: tuple[int, ...], message: str
) -> None:
    model = small(**fields)
    with pytest.raises(ValueError, match=message):
        grow(model, depths)
    assert [len(model.get_submodule(stage)) for stage in model.stages] == [2, 2]
