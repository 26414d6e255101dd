"""SGD's momentum in its two published forms, over lists of tensors: few kernels for many tensors on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resnet_core.config import MomentumForm

MOMENTUM = "momentum_buffer"

Group = dict[str, Any]


class MomentumSGD(torch.optim.Optimizer):
    """SGD along d = g + weight_decay w, with momentum m and its buffer v in one of two forms.

    torch: v := m v + d;     w -= lr v,  with Nesterov  w -= lr (d + m v)
    caffe: v := m v + lr d;  w -= v,     with Nesterov  w -= lr d + m v

    Both are equal while the rate is constant; when it falls, Caffe's momentum still contains the previous rate.
    torch.optim.SGD does the torch form in one kernel.
    """

    def __init__(
        self, groups: list[Group], *, lr: float, momentum: float, nesterov: bool, form: MomentumForm, **more: Any
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "momentum_form": form, "weight_decay": 0.0}
        super().__init__(groups, defaults | more)

    def directions(self, parameters: list[Tensor], gradients: list[Tensor], group: Group) -> list[Tensor]:
        """Return d for the parameters of a group: the negative of the direction in which they move."""
        if not group["weight_decay"]:
            return gradients
        return list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))

    @staticmethod
    def initial_state(parameter: Tensor, group: Group) -> dict[str, Tensor]:
        return {MOMENTUM: torch.zeros_like(parameter)} if group["momentum"] else {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters, gradients = with_gradients(group)
            directions = self.directions(parameters, gradients, group)
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter] = self.initial_state(parameter, group)
            buffers = [self.state[parameter][MOMENTUM] for parameter in parameters if group["momentum"]]
            _move_(parameters, directions, buffers, group)


def with_gradients(group: Group) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters of a group that have a gradient, and their gradients."""
    pairs = [(parameter, parameter.grad) for parameter in group["params"] if parameter.grad is not None]
    return [parameter for parameter, _ in pairs], [gradient for _, gradient in pairs]


def _move_(parameters: list[Tensor], directions: list[Tensor], buffers: list[Tensor], group: Group) -> None:
    if not parameters:
        return
    lr, momentum, caffe = group["lr"], group["momentum"], group["momentum_form"] == "caffe"
    if not momentum:
        torch._foreach_add_(parameters, directions, alpha=-lr)
        return
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, directions, alpha=lr if caffe else 1.0)
    rate = 1.0 if caffe else lr  # Caffe's buffer already contains the rate
    if group["nesterov"]:
        torch._foreach_add_(parameters, directions, alpha=-lr)
        torch._foreach_add_(parameters, buffers, alpha=-rate * momentum)
    else:
        torch._foreach_add_(parameters, buffers, alpha=-rate)
