"""LAMB and LARS: each tensor has a rate in proportion to its norm (LAMB: You et al. 2020, arXiv 1904.00962)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from resnet_core.optim.momentum import Group, MomentumSGD, with_gradients


class Lamb(torch.optim.Optimizer):
    """Algorithm 2 of the paper with bias correction, the default of timm's Lamb and apex's FusedLAMB.

        m := b1 m + (1 - b1) g;  v := b2 v + (1 - b2) g^2
        u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay w
        w -= lr |w| / |u| u

    |w| / |u| is 1 if either is zero, and for the groups marked `exempt` (norms and biases). timm and apex also clip the
    gradient to a global norm of 1 first; here the recipe's optim.clip_norm does that, for every optimizer.
    """

    def __init__(self, groups: list[Group], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @staticmethod
    def initial_state(parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """Return zeros; `step`, the number of updates, is on the CPU, where reading it does not wait for a GPU."""
        del group
        mean, square = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return {"step": torch.zeros(()), "exp_avg": mean, "exp_avg_sq": square}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters, gradients = with_gradients(group)
            if not parameters:
                continue
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter] = self.initial_state(parameter, group)
            updates = _adam_directions(gradients, [self.state[parameter] for parameter in parameters], group)
            if group["weight_decay"]:
                torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
            if not group["exempt"]:
                torch._foreach_mul_(updates, _trust_ratios(parameters, updates))
            torch._foreach_add_(parameters, updates, alpha=-group["lr"])


def _adam_directions(gradients: list[Tensor], states: list[dict[str, Any]], group: Group) -> list[Tensor]:
    beta1, beta2 = group["betas"]
    means = [state["exp_avg"] for state in states]
    squares = [state["exp_avg_sq"] for state in states]
    counts = [state["step"] for state in states]
    torch._foreach_add_(counts, 1.0)
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
    steps = [int(count) for count in counts]
    divisors = torch._foreach_sqrt(squares)
    torch._foreach_div_(divisors, [(1 - beta2**step) ** 0.5 for step in steps])
    torch._foreach_add_(divisors, group["eps"])
    directions = torch._foreach_div(means, divisors)
    torch._foreach_div_(directions, [1 - beta1**step for step in steps])
    return list(directions)


def _trust_ratios(parameters: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    weight_norms = torch.stack(torch._foreach_norm(parameters))
    update_norms = torch.stack(torch._foreach_norm(updates))
    ratios = torch.where((weight_norms > 0) & (update_norms > 0), weight_norms / update_norms, 1.0)
    return list(ratios.unbind())


class Lars(MomentumSGD):
    """Momentum SGD along r (g + weight_decay w), where r = eta |w| / (|g| + weight_decay |w| + eps), per tensor.

    With Caffe's momentum it equals MLPerf's LARS (where eps is 0). With torch's momentum it equals timm's Lars and
    apex's LARC without clipping. r is 1 if |w| or |g| is zero, and for the groups marked `exempt` (norms and biases),
    as in MLPerf's skip list.
    """

    def directions(self, parameters: list[Tensor], gradients: list[Tensor], group: Group) -> list[Tensor]:
        decayed = super().directions(parameters, gradients, group)
        if group["exempt"] or not parameters:
            return decayed
        weight_norms = torch.stack(torch._foreach_norm(parameters))
        gradient_norms = torch.stack(torch._foreach_norm(gradients))
        divisors = gradient_norms + group["weight_decay"] * weight_norms + group["eps"]
        ratios = group["trust_coefficient"] * weight_norms / divisors
        ratios = torch.where((weight_norms > 0) & (gradient_norms > 0), ratios, 1.0)
        return list(torch._foreach_mul(decayed, ratios.unbind()))
