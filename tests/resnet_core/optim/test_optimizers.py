"""Every optimizer, step by step, against its formula in float64; LARS and LAMB against timm's too."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import nn

from resnet_core.config import OptimConfig, OptimizerName
from resnet_core.optim import build_optimizer

RATES = [0.1, 0.1, 0.3, 0.03, 0.01]  # the forms of momentum differ where the rate moves


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2)).double()


def gradients_of(model: nn.Module, step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]


def run(optimizer: torch.optim.Optimizer, model: nn.Module, rates: list[float] = RATES) -> list[torch.Tensor]:
    """Every parameter after each step, one after the other."""
    seen = []
    for step, lr in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for parameter, gradient in zip(model.parameters(), gradients_of(model, step), strict=True):
            parameter.grad = gradient
        optimizer.step()
        seen += [parameter.detach().clone() for parameter in model.parameters()]
    return seen


def exempt(position: int) -> bool:
    """Of small_net's parameters all but the two weights: norm scale, norm shift, bias."""
    return position not in (0, 3)


def trust(weight: torch.Tensor, gradient: torch.Tensor, decay: float, config: OptimConfig) -> float:
    weight_norm, gradient_norm = math.sqrt(float((weight**2).sum())), math.sqrt(float((gradient**2).sum()))
    if weight_norm == 0 or gradient_norm == 0:
        return 1.0
    return config.trust_coefficient * weight_norm / (gradient_norm + decay * weight_norm + config.eps)


def momentum_formula(model: nn.Module, config: OptimConfig) -> list[torch.Tensor]:
    seen = []
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    velocity = [torch.zeros_like(weight) for weight in weights]
    m = config.momentum
    for step, lr in enumerate(RATES):
        for position, gradient in enumerate(gradients_of(model, step)):
            decay = 0.0 if exempt(position) and not config.decay_norm_and_bias else config.weight_decay
            scaled = config.optimizer == "lars" and not (exempt(position) and not config.decay_norm_and_bias)
            ratio = trust(weights[position], gradient, decay, config) if scaled else 1.0
            d = ratio * (gradient + decay * weights[position])
            v = velocity[position] = m * velocity[position] + (lr * d if config.momentum_form == "caffe" else d)
            rate = 1.0 if config.momentum_form == "caffe" else lr
            moved = lr * d + rate * m * v if config.nesterov else rate * v
            weights[position] = weights[position] - moved
        seen += weights
    return seen


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
@pytest.mark.parametrize("form", ["torch", "caffe"])
@pytest.mark.parametrize("changes", [{}, {"nesterov": True}, {"momentum": 0.0}, {"decay_norm_and_bias": True}])
def test_momentum_follows_its_formula(optimizer, form, changes) -> None:
    settings = {"optimizer": optimizer, "momentum_form": form, "weight_decay": 0.05, "trust_coefficient": 0.02}
    config, model = OptimConfig(**(settings | changes)), small_net()
    expected = momentum_formula(model, config)
    for mine, theirs in zip(run(build_optimizer(model, config), model), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-14, rtol=1e-13)


def test_caffes_momentum_carries_the_former_rate_where_torchs_does_not() -> None:
    after = {}
    for form in ("torch", "caffe"):
        model = nn.Linear(1, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        config = OptimConfig(momentum_form=form, weight_decay=0.0)
        optimizer = build_optimizer(model, config)
        for lr, gradient in ((1.0, 1.0), (0.1, 0.0)):
            optimizer.param_groups[0]["lr"] = lr
            model.weight.grad = torch.full_like(model.weight, gradient)
            optimizer.step()
        after[form] = float(model.weight.detach())
    assert after["torch"] == pytest.approx(-1.0 - 0.1 * 0.9)
    assert after["caffe"] == pytest.approx(-1.0 - 0.9)


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_timms_where_that_has_the_same_form(nesterov: bool) -> None:
    """timm decides by the decay which tensors are scaled; the groups here agree on that."""
    timm = pytest.importorskip("timm.optim.lars")
    config = OptimConfig(optimizer="lars", weight_decay=0.05, nesterov=nesterov)
    model, other = small_net(), small_net()
    groups = [
        {"params": [p for i, p in enumerate(other.parameters()) if exempt(i) == exempted], "weight_decay": decay}
        for exempted, decay in ((False, 0.05), (True, 0.0))
    ]
    theirs = timm.Lars(groups, lr=0.1, momentum=0.9, nesterov=nesterov, trust_coeff=0.001, eps=1e-8)
    for mine, expected in zip(run(build_optimizer(model, config), model), run(theirs, other), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-13, rtol=1e-12)


def test_lars_takes_a_tensor_of_zeros_at_the_plain_rate() -> None:
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = build_optimizer(model, OptimConfig(optimizer="lars", momentum=0.0))
    optimizer.param_groups[0]["lr"] = 0.5
    model.weight.grad = torch.tensor([[1.0, -2.0]])
    optimizer.step()
    assert model.weight.tolist() == [[-0.5, 1.0]]


def test_a_gradient_is_left_as_it_was() -> None:
    """The loop clips it before a step, and nothing may depend on what a step leaves of it."""
    for name in get_args(OptimizerName):
        model = small_net()
        optimizer = build_optimizer(model, OptimConfig(optimizer=name, momentum_form="caffe", weight_decay=0.1))
        gradients = gradients_of(model, 0)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        assert [p.grad.tolist() for p in model.parameters() if p.grad is not None] == [g.tolist() for g in gradients]


def adam_formula(model: nn.Module, config: OptimConfig) -> list[torch.Tensor]:
    seen = []
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    mean = [torch.zeros_like(weight) for weight in weights]
    square = [torch.zeros_like(weight) for weight in weights]
    for step, lr in enumerate(RATES, start=1):
        for i, g in enumerate(gradients_of(model, step - 1)):
            exempted = exempt(i) and not config.decay_norm_and_bias
            decay = 0.0 if exempted else config.weight_decay
            mean[i] = config.beta1 * mean[i] + (1 - config.beta1) * g
            square[i] = config.beta2 * square[i] + (1 - config.beta2) * g**2
            mean_hat, square_hat = mean[i] / (1 - config.beta1**step), square[i] / (1 - config.beta2**step)
            direction = mean_hat / (square_hat.sqrt() + config.eps)
            update = direction + decay * weights[i]
            if config.optimizer == "lamb" and not exempted:
                length, reach = (update**2).sum().sqrt(), (weights[i] ** 2).sum().sqrt()
                update = update * (reach / length if reach > 0 and length > 0 else 1.0)
            weights[i] = weights[i] - lr * update
        seen += weights
    return seen


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
@pytest.mark.parametrize("changes", [{}, {"decay_norm_and_bias": True}, {"beta1": 0.8, "beta2": 0.95, "eps": 1e-2}])
def test_adam_and_lamb_follow_their_formula(optimizer, changes) -> None:
    config, model = OptimConfig(**({"optimizer": optimizer, "weight_decay": 0.05} | changes)), small_net()
    expected = adam_formula(model, config)
    for mine, theirs in zip(run(build_optimizer(model, config), model), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-13, rtol=1e-12)


def test_lamb_is_timms_without_its_clipping() -> None:
    timm = pytest.importorskip("timm.optim.lamb")
    config = OptimConfig(optimizer="lamb", weight_decay=0.05, eps=1e-6)
    model, other = small_net(), small_net()
    groups = [
        {"params": [p for i, p in enumerate(other.parameters()) if exempt(i) == exempted], "weight_decay": decay}
        for exempted, decay in ((False, 0.05), (True, 0.0))
    ]
    theirs = timm.Lamb(groups, lr=0.1, eps=1e-6, max_grad_norm=None)
    for mine, expected in zip(run(build_optimizer(model, config), model), run(theirs, other), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-12, rtol=1e-10)


def test_a_parameter_that_joins_later_has_its_own_count() -> None:
    """Its first update is corrected for one gradient, not for those that the others have had."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    first, second = model.parameters()
    optimizer = build_optimizer(model, OptimConfig(optimizer="lamb", weight_decay=0.0))
    for _ in range(3):
        first.grad = torch.ones(2, 2)
        optimizer.step()
    second.grad = torch.ones(2, 2)
    optimizer.step()
    assert (float(optimizer.state[first]["step"]), float(optimizer.state[second]["step"])) == (4.0, 1.0)
