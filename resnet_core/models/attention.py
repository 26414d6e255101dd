"""Attention at the end of a residual branch: every module scales its input by factors in (0, 1).

Shapes: B images, C channels, H and W pixels; a gate is B x C x 1 x 1, or B x 1 x H x W over pixels.
Names of tensors, inner widths and the use of biases are timm's, so timm's weights fit.

Weight decay acts on every parameter that is not called `bias`; a module in `EXEMPT` (optim/optimizer.py) is spared.
"""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.config.variants import Variant


def attention(variant: Variant, channels: int, dilation: int = 1) -> nn.Module | None:
    """Build the variant's attention over `channels`, in a block of this dilation; None if the variant has none."""
    match variant.attention:
        case "se":
            return SqueezeExcitation(channels, variant.attention_ratio)
        case "eca":
            return EfficientChannelAttention(channels)
        case "cbam":
            return Cbam(channels, variant.attention_ratio, dilation)
        case "none":
            return None
        case _:
            assert_never(variant.attention)


class SqueezeExcitation(nn.Module):
    """Scale by sigmoid(W2 relu(W1 mean(x))) (Hu et al. 2018, Section 3); inner channels are a multiple of 8 (timm)."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        inner = max(8, int(channels * ratio + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(channels, inner, kernel_size=1)
        self.fc2 = nn.Conv2d(inner, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)), inplace=True)).sigmoid()
        return x * gate


class EfficientChannelAttention(nn.Module):
    """Scale by the sigmoid of a 1-d convolution of the channel means; the kernel grows with log2 C.

    Source: Wang et al. 2020, equation 12.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        nearest = int(abs(math.log2(channels) + 1) / 2)
        kernel = max(nearest + 1 - nearest % 2, 3)  # odd
        self.conv = nn.Conv1d(1, 1, kernel_size=kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * gate.reshape(*x.shape[:2], 1, 1)


class Cbam(nn.Module):
    """Attention over channels, then over pixels (Woo et al. 2018, arXiv 1807.06521, Section 3)."""

    def __init__(self, channels: int, ratio: float, dilation: int = 1) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, ratio)
        self.spatial = SpatialAttention(dilation)

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.spatial(self.channel(x))
        return attended


class ChannelAttention(nn.Module):
    """Scale channels by sigmoid(f(mean(x)) + f(max(x))); f has two layers without bias."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        inner = max(1, int(channels * ratio + 0.5))
        self.fc1 = nn.Conv2d(channels, inner, kernel_size=1, bias=False)
        self.fc2 = nn.Conv2d(inner, channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = (x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
        by_mean, by_max = (self.fc2(F.relu(self.fc1(each), inplace=True)) for each in pooled)
        gate: Tensor = (by_mean + by_max).sigmoid()
        return x * gate


class SpatialAttention(nn.Module):
    """Scale pixels by the sigmoid of a normalized 7x7 convolution of the mean and the maximum over channels."""

    def __init__(self, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size=7, padding=3 * dilation, dilation=dilation, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        gate: Tensor = self.bn(self.conv(pooled)).sigmoid()
        return x * gate
