"""Frozen parts and rates by depth: what a part that does not train must not do."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from resnet_core.config import ModelConfig, OptimConfig
from resnet_core.config.model import FrozenTo
from resnet_core.models import ResNet, build_model, freeze, frozen_modules, lr_factors
from resnet_core.optim import build_optimizer, state_tensors
from resnet_core.optim.averaging import WeightAverage, exponential
from resnet_core.state import TrainState
from resnet_core.step import Microbatch, RankBatch, StepConfig, train_step


def network(name: str = "resnet20", **keys: object) -> ResNet:
    torch.manual_seed(0)
    return build_model(name, num_classes=5, **keys)  # type: ignore[arg-type]


def batch(size: int = 8) -> RankBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (size, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(5, (size,), generator=generator)
    return RankBatch(microbatches=[Microbatch(images_BHWC=images, labels_B=labels)], count=size)


def trained(model: ResNet, config: OptimConfig, steps: int = 2) -> TrainState:
    average = WeightAverage(model, exponential(0.9))
    state = TrainState(model=model, forward=model, optimizer=build_optimizer(model, config), average=average)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        train_step(state, batch(), lr=0.1, config=StepConfig(), generator=generator)
        state.step += 1
    return state


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.mark.parametrize(
    ("last", "trains"),
    [
        ("", {"conv1", "bn1", "layer1", "layer2", "layer3", "fc"}),
        ("stem", {"layer1", "layer2", "layer3", "fc"}),
        ("layer2", {"layer3", "fc"}),
        ("layer3", {"fc"}),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "lamb"])
def test_frozen_parts_keep_weights_and_statistics_and_have_no_state(
    last: FrozenTo, trains: set[str], optimizer: str
) -> None:
    model = network(drop_path=0.5, activation_checkpointing=True)
    freeze(model, last)
    before = copy.deepcopy(model.state_dict())
    state = trained(model, OptimConfig(optimizer=optimizer))  # type: ignore[arg-type]
    assert changed(before, model.state_dict()) == trains
    assert state.average is not None
    assert changed(before, state.average.model.state_dict()) == trains
    assert {name.split(".")[1] for name in state_tensors(state.optimizer, model)} == trains
    assert {module.training for module in frozen_modules(model)} <= {False}


def test_frozen_stages_make_no_graph_and_do_not_drop_branches() -> None:
    model = network(drop_path=0.9)
    freeze(model, "layer3")
    features = {}
    model.avgpool.register_forward_hook(lambda module, given, result: features.update(last=result))
    images = torch.randn(4, 3, 32, 32)
    model.train()
    model(images)
    assert not features["last"].requires_grad
    first = features["last"]
    model.eval()
    model(images)
    assert torch.equal(first, features["last"])


def test_freezing_the_last_stage_of_a_pre_activation_network_freezes_its_last_norm() -> None:
    model = network("resnet50", block_order="pre")
    freeze(model, "layer4")
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {"fc.weight", "fc.bias"}
    freeze(model, "layer1")
    assert model.norm.weight.requires_grad
    assert model.norm.training


def test_unfreezing_lets_everything_train_again() -> None:
    model = network()
    freeze(model, "layer3")
    freeze(model, "")
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["resnet50", "resnet18d"])
def test_layer_decay_is_timms(name: str) -> None:
    theirs = timm.create_model(name, num_classes=5)
    scales = {
        parameter: group["lr_scale"]
        for group in param_groups_layer_decay(theirs, layer_decay=0.75)
        for parameter in group["params"]
    }
    expected = {key: scales[parameter] for key, parameter in theirs.named_parameters()}
    ours = network(name)
    factors = lr_factors(ours, head=1.0, layer_decay=0.75)
    assert {key: factors[parameter] for key, parameter in ours.named_parameters()} == pytest.approx(expected)


def test_each_step_moves_a_layer_by_its_own_rate() -> None:
    """Plain SGD without momentum: the step of a tensor is its factor times that of the same tensor without factors."""
    models = network(), network()
    plain = OptimConfig(momentum=0.0, weight_decay=0.0)
    factored = OptimConfig(momentum=0.0, weight_decay=0.0, head_lr_factor=10.0, layer_decay=0.5)
    before = copy.deepcopy(models[0].state_dict())
    for model, config in zip(models, (plain, factored), strict=True):
        trained(model, config, steps=1)
    factors = lr_factors(models[1], head=10.0, layer_decay=0.5)
    for (name, one), (_, other) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        moved = factors[other] * (one - before[name])
        torch.testing.assert_close(other.detach() - before[name], moved.detach(), rtol=1e-2, atol=1e-6)
    by_name = {name: factors[parameter] for name, parameter in models[1].named_parameters()}
    assert (by_name["fc.weight"], by_name["conv1.weight"]) == (10.0, 0.5**10)


def test_groups_of_a_recipe_without_factors_are_those_of_before() -> None:
    groups = build_optimizer(network(), OptimConfig()).param_groups
    assert [(group["exempt"], group["lr_factor"]) for group in groups] == [(False, 1.0), (True, 1.0)]


def test_a_stage_that_the_network_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.freeze must be one of stem, layer1, layer2, layer3 for resnet20"):
        ModelConfig(name="resnet20", init_from="w.safetensors", freeze="layer4")
    with pytest.raises(ValueError, match=r'model\.freeze must be "" without init_from'):
        ModelConfig(name="resnet20", freeze="layer1")
    assert "layer4" in get_args(FrozenTo)


def test_exact_statistics_leave_frozen_norms_alone() -> None:
    from resnet_core.batchnorm import reestimate_batchnorm

    model = network()
    freeze(model, "layer1")
    before = copy.deepcopy(model.state_dict())
    reestimate_batchnorm(model, [batch().microbatches[0].images_BHWC], StepConfig())
    assert changed(before, model.state_dict()) == {"layer2", "layer3"}
    assert isinstance(model.bn1, nn.BatchNorm2d)
