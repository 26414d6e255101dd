"""SGD with momentum, and which parameters it decays."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from resnet_core.config import OptimConfig

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)


def param_groups(model: nn.Module, weight_decay: float, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
    """Every parameter in exactly one group, by the type of its module and its role there, never by its full name.

    Norm scales, norm shifts and biases are left undecayed unless `decay_norm_and_bias` is set.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for module in model.modules():
        for role, parameter in module.named_parameters(recurse=False):
            exempt = not decay_norm_and_bias and (isinstance(module, NORMS) or role == "bias")
            (undecayed if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """SGD over a model that is already on its device; one fused kernel per step where that is a GPU.

    The rate starts at the peak; the loop sets it before each step.
    """
    on_gpu = all(parameter.is_cuda for parameter in model.parameters())
    return torch.optim.SGD(
        param_groups(model, config.weight_decay, config.decay_norm_and_bias),
        lr=config.peak_lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=True if on_gpu else None,
    )
