"""A recipe's optimizer: its parameter groups, its state by name, and sharpness-aware steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from resnet_core.config import OptimConfig
from resnet_core.models import ResNet, lr_factors
from resnet_core.optim.averaging import copy_all_
from resnet_core.optim.layerwise import Lamb, Lars
from resnet_core.optim.momentum import MOMENTUM, Group, MomentumSGD

EXEMPT = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU)


def param_groups(
    model: nn.Module,
    weight_decay: float,
    decay_norm_and_bias: bool,
    factors: Mapping[nn.Parameter, float] | None = None,
) -> list[Group]:
    """Put every parameter that trains into exactly one group, by its module's type and its role there.

    Norm scales, norm shifts, biases and PReLU's slopes form groups marked `exempt`: no weight decay, no scaling to
    their norm. With `decay_norm_and_bias` they join the other groups. Parameters with another factor of the learning
    rate (`factors`, 1 by default) form groups of their own, with this `lr_factor`.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(False, 1.0): [], (True, 1.0): []}
    for module in model.modules():
        for role, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                exempt = not decay_norm_and_bias and (isinstance(module, EXEMPT) or role == "bias")
                groups.setdefault((exempt, (factors or {}).get(parameter, 1.0)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if exempt else weight_decay, "exempt": exempt, "lr_factor": factor}
        for (exempt, factor), parameters in groups.items()
        if parameters
    ]


def set_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group to `lr` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def _groups(model: nn.Module, config: OptimConfig) -> list[Group]:
    factors = None
    if config.head_lr_factor != 1 or config.layer_decay != 1:
        assert isinstance(model, ResNet)
        factors = lr_factors(model, head=config.head_lr_factor, layer_decay=config.layer_decay)
    return param_groups(model, config.weight_decay, config.decay_norm_and_bias, factors)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the recipe's optimizer for a model that is already on its device.

    On a GPU torch's own optimizers run one kernel per step. The rate starts at the peak; the loop sets it before each
    step.
    """
    groups = _groups(model, config)
    # not on a CPU: it is no faster there and, in torch 2.15, misreads a gradient whose memory layout differs
    fused = True if all(parameter.is_cuda for parameter in model.parameters()) else None
    lr, momentum, nesterov, betas = config.peak_lr, config.momentum, config.nesterov, (config.beta1, config.beta2)
    match config.optimizer:
        case "sgd" if config.momentum_form == "torch":
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
        case "sgd":
            return MomentumSGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, form=config.momentum_form)
        case "lars":
            settings = {"trust_coefficient": config.trust_coefficient, "eps": config.eps}
            form = config.momentum_form
            return Lars(groups, lr=lr, momentum=momentum, nesterov=nesterov, form=form, **settings)
        case "lamb":
            return Lamb(groups, lr=lr, betas=betas, eps=config.eps)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=config.eps, fused=fused)


def add_new_parameters(optimizer: torch.optim.Optimizer, model: nn.Module, config: OptimConfig) -> list[nn.Parameter]:
    """Add the new parameters of a grown `model` to the groups, by the same rules, with initial state; return them.

    Parameters that the model no longer has stay in the optimizer.
    """
    fill_state(optimizer)  # a fused step needs either all momenta of a group or none
    known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    joined: list[nn.Parameter] = []
    for group in _groups(model, config):
        new = [parameter for parameter in group["params"] if parameter not in known]
        alike = [mine for mine in optimizer.param_groups if _kind(mine) == _kind(group)]
        if alike:
            alike[0]["params"].extend(new)
        elif new:
            optimizer.add_param_group(group | {"params": new})
        joined += new
    fill_state(optimizer)
    return joined


def _kind(group: Group) -> tuple[bool, float]:
    return group["exempt"], group["lr_factor"]


def state_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the live state as `<kind>.<parameter>`, such as `momentum_buffer.layer1.0.conv1.weight`.

    A count is a 0-d tensor. The names are the same before and after the first step: a parameter without state gets its
    initial state.
    """
    fill_state(optimizer)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{kind}.{names[parameter]}": tensor
        for group in optimizer.param_groups
        for parameter in group["params"]
        for kind, tensor in optimizer.state[parameter].items()
    }


def fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter without state its initial state; this does not change any step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            slot = optimizer.state[parameter]
            if all(value is None for value in slot.values()):
                slot.update(_initial_state(optimizer, parameter, group))


def _initial_state(optimizer: torch.optim.Optimizer, parameter: Tensor, group: Group) -> dict[str, Tensor]:
    match optimizer:
        case MomentumSGD() | Lamb():
            return optimizer.initial_state(parameter, group)
        case torch.optim.SGD():
            return {MOMENTUM: torch.zeros_like(parameter)} if group["momentum"] else {}
        case torch.optim.AdamW():
            # as in torch: a fused kernel reads the count on the device
            count = torch.zeros((), device=parameter.device if group["fused"] else "cpu")
            mean, square = torch.zeros_like(parameter), torch.zeros_like(parameter)
            return {"step": count, "exp_avg": mean, "exp_avg_sq": square}
        case _:
            raise TypeError(f"{type(optimizer).__name__} is not supported: its initial state is unknown")


_TINY = 1e-12  # as in the paper's code: a gradient of zero perturbs nothing


@contextmanager
def climbed(model: nn.Module, rho: float) -> Iterator[None]:
    """Move the weights by rho along their gradient, to w + rho g / |g|, where the loss nearby is about highest.

    |g| is the norm over all parameters. Inside the context, gradients are cleared for those of the perturbed weights.
    Afterwards weights and buffers are restored bit for bit, so BatchNorm's averages ignore the perturbed weights.

    Under DDP the gradients are already those of the whole global batch, so every rank moves to the same point.
    """
    parameters: list[Tensor] = [parameter for parameter in model.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    buffers = list(model.buffers())
    with torch.no_grad():
        kept_parameters, kept_buffers = ([tensor.clone() for tensor in tensors] for tensors in (parameters, buffers))
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        steps = torch._foreach_mul(gradients, rho / (length + _TINY))
        torch._foreach_add_(parameters, list(steps))
    model.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        with torch.no_grad():
            copy_all_(parameters, kept_parameters)
            copy_all_(buffers, kept_buffers)
