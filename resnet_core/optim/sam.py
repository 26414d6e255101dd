"""Sharpness-aware minimisation, around any optimizer (Foret et al. 2021, arXiv 2010.01412)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from resnet_core.optim.averaging import copy_all_

_TINY = 1e-12  # as in the paper's code: a gradient of zero perturbs nothing


@contextmanager
def climbed(model: nn.Module, rho: float) -> Iterator[None]:
    """The weights moved by rho along their gradient, w + rho g / |g|, where the loss nearby is about worst.

    |g| is over all parameters. The gradients are gone inside, ready for those of the perturbed weights. Afterwards
    weights and buffers are bit for bit what they were: BatchNorm's averages are not those of perturbed weights.

    Under DDP the gradients are already those of the whole global batch, so every rank climbs to the same point.
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
