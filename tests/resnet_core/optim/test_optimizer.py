from __future__ import annotations

import pytest
import torch
from torch import nn

from resnet_core.config import ModelConfig, OptimConfig
from resnet_core.models import build_model
from resnet_core.optim import add_new_parameters, build_optimizer, param_groups, state_tensors
from resnet_core.optim.layerwise import Lamb, Lars
from resnet_core.optim.momentum import MomentumSGD


def model() -> nn.Module:
    with torch.device("meta"):
        return build_model(ModelConfig(name="resnet50", num_classes=10))


@pytest.mark.parametrize("everything", [False, True])
def test_groups_partition_the_parameters(everything: bool) -> None:
    network = model()
    grouped = [id(p) for group in param_groups(network, 1e-4, everything) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())


def test_norms_and_biases_are_undecayed_the_downsample_norms_included() -> None:
    network = model()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed, undecayed = param_groups(network, 1e-4, decay_norm_and_bias=False)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (1e-4, 0.0)
    assert len(decayed["params"]) == 53 + 1  # convolutions, linear weight
    assert len(undecayed["params"]) == 2 * 53 + 1  # norms' scales and shifts, linear bias
    exempt = {names[id(parameter)] for parameter in undecayed["params"]}
    assert {"bn1.weight", "layer1.0.downsample.1.weight", "layer4.2.bn3.bias", "fc.bias"} <= exempt


def test_the_paper_decays_everything() -> None:
    (group,) = param_groups(model(), 1e-4, decay_norm_and_bias=True)
    assert (len(group["params"]), group["weight_decay"]) == (161, 1e-4)


def test_optimizer_takes_its_settings_from_the_recipe() -> None:
    optimizer = build_optimizer(model(), OptimConfig(global_batch_size=512, momentum=0.8, nesterov=True))
    assert {(group["lr"], group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {
        (0.2, 0.8, True)
    }


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


PARAMETERS = ["0.weight", "0.bias", "1.weight", "1.bias"]
ADAM = ["step", "exp_avg", "exp_avg_sq"]
OPTIMIZERS = [
    (OptimConfig(), torch.optim.SGD, ["momentum_buffer"]),
    (OptimConfig(momentum=0.0), torch.optim.SGD, []),
    (OptimConfig(momentum_form="caffe"), MomentumSGD, ["momentum_buffer"]),
    (OptimConfig(momentum_form="caffe", momentum=0.0), MomentumSGD, []),
    (OptimConfig(optimizer="lars"), Lars, ["momentum_buffer"]),
    (OptimConfig(optimizer="lamb"), Lamb, ADAM),
    (OptimConfig(optimizer="adamw"), torch.optim.AdamW, ADAM),
]


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()


@pytest.mark.parametrize(("config", "kind", "slots"), OPTIMIZERS)
def test_the_state_has_the_same_names_before_the_first_step_and_after(config, kind, slots) -> None:
    model = small()
    optimizer = build_optimizer(model, config)
    assert type(optimizer) is kind
    before = state_tensors(optimizer, model)
    assert set(before) == {f"{slot}.{name}" for slot in slots for name in PARAMETERS}
    assert all(not tensor.any() for tensor in before.values())
    step(model, optimizer)
    after = state_tensors(optimizer, model)
    assert {name: (t.shape, t.dtype) for name, t in after.items()} == {
        name: (t.shape, t.dtype) for name, t in before.items()
    }
    assert all(tensor.any() for tensor in after.values())


@pytest.mark.parametrize(("config", "kind", "slots"), OPTIMIZERS)
def test_a_state_looked_at_before_the_first_step_changes_no_step(config, kind, slots) -> None:
    seen, unseen = small(), small()
    looked, other = build_optimizer(seen, config), build_optimizer(unseen, config)
    state_tensors(looked, seen)
    for _ in range(3):
        step(seen, looked)
        step(unseen, other)
    assert all(torch.equal(one, two) for one, two in zip(seen.parameters(), unseen.parameters(), strict=True))


@pytest.mark.parametrize(("config", "kind", "slots"), OPTIMIZERS)
def test_parameters_that_join_follow_the_rules_of_the_first_ones(config, kind, slots) -> None:
    model = small()
    optimizer = build_optimizer(model, config)
    step(model, optimizer)
    kept = {name: tensor.clone() for name, tensor in state_tensors(optimizer, model).items()}
    model.append(nn.Linear(3, 3)).append(nn.BatchNorm1d(3))
    joined = add_new_parameters(optimizer, model, config)
    assert {id(parameter) for parameter in joined} == {id(p) for layer in model[2:] for p in layer.parameters()}
    expected = param_groups(model, config.weight_decay, config.decay_norm_and_bias)
    for group, wanted in zip(optimizer.param_groups, expected, strict=True):
        assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in wanted["params"]}
        assert group["weight_decay"] == wanted["weight_decay"]
    tensors = state_tensors(optimizer, model)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in kept.items())
    assert len(tensors) == 2 * len(kept)
    before = [parameter.detach().clone() for parameter in joined]
    step(model, optimizer)
    assert all(not torch.equal(old, new) for old, new in zip(before, joined, strict=True))
    assert add_new_parameters(optimizer, model, config) == []


def test_a_kind_of_parameter_that_is_new_gets_its_own_group() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    config = OptimConfig(weight_decay=0.1)
    optimizer = build_optimizer(model, config)
    model.append(nn.BatchNorm1d(2))
    add_new_parameters(optimizer, model, config)
    assert [(len(g["params"]), g["weight_decay"], g["momentum"]) for g in optimizer.param_groups] == [
        (1, 0.1, 0.9),
        (2, 0.0, 0.9),
    ]
