"""Activation functions of the networks. All of them are zero at zero."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from resnet_core.config.variants import ActivationKind

_PLAIN: dict[ActivationKind, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "elu": nn.ELU,
}


def activation(kind: ActivationKind, channels: int) -> nn.Module:
    """Build an activation; "prelu" has one slope per channel, initially 0.25 (He et al. 2015b, arXiv 1502.01852)."""
    return nn.PReLU(channels) if kind == "prelu" else _PLAIN[kind]()
