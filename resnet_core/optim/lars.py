"""LARS: each tensor learns at a rate in proportion to its norm (You et al. 2017, arXiv 1708.03888)."""

from __future__ import annotations

import torch
from torch import Tensor

from resnet_core.optim.momentum import Group, MomentumSGD


class Lars(MomentumSGD):
    """Momentum SGD against r (g + weight_decay w), where r = eta |w| / (|g| + weight_decay |w| + eps), per tensor.

    With Caffe's momentum it is MLPerf's LARS (eps 0 there); with torch's, apex's LARC without clipping and timm's Lars.
    r is 1 where |w| or |g| is zero, and for the groups marked `exempt` (norms and biases), as in MLPerf's skip list.
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
