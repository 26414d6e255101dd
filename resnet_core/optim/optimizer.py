"""Which optimizer, which parameters it decays, and the whole of its state by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from resnet_core.config import OptimConfig
from resnet_core.optim.lamb import Lamb
from resnet_core.optim.lars import Lars
from resnet_core.optim.momentum import MOMENTUM, Group, MomentumSGD

EXEMPT = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU)


def param_groups(model: nn.Module, weight_decay: float, decay_norm_and_bias: bool) -> list[Group]:
    """Every parameter in exactly one group, by the type of its module and its role there, never by its full name.

    Norm scales, norm shifts, biases and PReLU's slopes form the group marked `exempt`, from decay and from rates by
    norm, unless `decay_norm_and_bias` is set. An empty group is left out.
    """
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for module in model.modules():
        for role, parameter in module.named_parameters(recurse=False):
            exempt = not decay_norm_and_bias and (isinstance(module, EXEMPT) or role == "bias")
            groups[exempt].append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if exempt else weight_decay, "exempt": exempt}
        for exempt, parameters in groups.items()
        if parameters
    ]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The recipe's optimizer over a model that is already on its device; on a GPU torch's own are one kernel a step.

    The rate starts at the peak; the loop sets it before each step.
    """
    groups = param_groups(model, config.weight_decay, config.decay_norm_and_bias)
    # not on a CPU, where it is no faster and, in torch 2.15, takes a gradient of another layout for one of its own
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
    """Let the parameters that `model` has gained join, by the same rules as the first ones; their state is fresh.

    Returns them. Those that the model has lost are not looked for.
    """
    fill_state(optimizer)  # a fused step wants either all momenta of a group or none
    known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    joined: list[nn.Parameter] = []
    for group in param_groups(model, config.weight_decay, config.decay_norm_and_bias):
        new = [parameter for parameter in group["params"] if parameter not in known]
        alike = [mine for mine in optimizer.param_groups if mine["exempt"] == group["exempt"]]
        if alike:
            alike[0]["params"].extend(new)
        elif new:
            optimizer.add_param_group(group | {"params": new})
        joined += new
    fill_state(optimizer)
    return joined


def state_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The live state as `<kind>.<parameter>`, e.g. `momentum_buffer.layer1.0.conv1.weight`; a count is a 0-d tensor.

    The names are the same before the first step and after it: what has no state yet gets the one it would start with.
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
    """Give every parameter that has no state yet the one it would start with; it changes no step."""
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
            # as torch lays it out: a fused kernel reads the count on the device
            count = torch.zeros((), device=parameter.device if group["fused"] else "cpu")
            mean, square = torch.zeros_like(parameter), torch.zeros_like(parameter)
            return {"step": count, "exp_avg": mean, "exp_avg_sq": square}
        case _:
            raise TypeError(f"no state is known of {type(optimizer).__name__}")
