"""Shortcuts, which a block adds to its residual branch: the paper's options A, B, C (Section 4.1) and ResNet-D's.

Shapes: B images, C channels, H and W pixels; a stride of two gives ceil(H / 2), as in the branch.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.config.variants import Variant
from resnet_core.models.convs import conv, planned_conv
from resnet_core.models.plan import BlockPlan, ConvPlan


def shortcut(plan: BlockPlan, variant: Variant) -> nn.Module | None:
    """Build the block's shortcut by the variant's option; None in a plain network."""
    if variant.shortcut == "none":
        return None
    if plan.keeps_shape and variant.shortcut != "C":
        return nn.Identity()
    if variant.shortcut == "A":
        return PaddingShortcut(plan)
    return pre_projection(plan, variant) if variant.block_order == "pre" else projection(plan, variant)


class PaddingShortcut(nn.Module):
    """Option A: every stride-th pixel, and zeros for the new channels; no parameters."""

    def __init__(self, plan: BlockPlan) -> None:
        super().__init__()
        self.stride = plan.stride
        self.new_channels = plan.out_channels - plan.in_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def projection(plan: BlockPlan, variant: Variant) -> nn.Sequential:
    """Build options B and C: 1x1 convolution and norm, with torchvision's names of tensors (timm's if pooled)."""
    norm = nn.BatchNorm2d(plan.out_channels)
    if variant.projection == "avgpool":
        return nn.Sequential(_pool(plan), conv(plan.in_channels, plan.out_channels, 1), norm)
    return nn.Sequential(_strided(plan, variant), norm)


def pre_projection(plan: BlockPlan, variant: Variant) -> nn.Sequential:
    """Build the 1x1 convolution alone: its norm and activation are the branch's (He et al. 2016, Section 4.2)."""
    if variant.projection == "avgpool":
        return nn.Sequential(OrderedDict(pool=_pool(plan), conv=conv(plan.in_channels, plan.out_channels, kernel=1)))
    return nn.Sequential(OrderedDict(conv=_strided(plan, variant)))


def _strided(plan: BlockPlan, variant: Variant) -> nn.Conv2d:
    step = ConvPlan(
        in_channels=plan.in_channels,
        out_channels=plan.out_channels,
        kernel=1,
        stride=plan.stride,
        dilation=plan.dilation,
        replaced_stride=plan.replaced_stride,
    )
    return planned_conv(step, blur=variant.blur_pool)


def _pool(plan: BlockPlan) -> nn.Module:
    """Build a 2x2 average pooling (He et al. 2019, Figure 2c); an odd edge averages the pixels that exist."""
    if plan.replaced_stride > 1:
        return DilatedAveragePool(plan.dilation)
    if plan.stride == 1:
        return nn.Identity()
    return nn.AvgPool2d(kernel_size=2, stride=plan.stride, ceil_mode=True, count_include_pad=False)


class DilatedAveragePool(nn.Module):
    """2x2 average pooling of stride one; its pixels are `dilation` apart. An edge averages the pixels that exist."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        for side in (2, 3):
            ahead = x.narrow(side, min(self.dilation, x.shape[side]), max(0, x.shape[side] - self.dilation))
            last = x.narrow(side, ahead.shape[side], x.shape[side] - ahead.shape[side])
            x = (x + torch.cat([ahead, last], dim=side)) / 2
        return x
