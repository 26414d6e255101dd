"""Convolutions without bias, plain or anti-aliased.

Shapes: B images, C channels, H and W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.models.plan import ConvPlan

MIN_BLURRED_CHANNELS = 16


class BlurConv2d(nn.Conv2d):
    """Strided convolution of its input after a 3x3 binomial blur (Zhang 2019, arXiv 1904.11486).

    The order is that of FFCV's ImageNet code: the blur comes first, with zero padding and at full size, and the
    convolution keeps its stride. Tensors and their names are those of the plain convolution. If dilation replaces the
    stride, the blur has the convolution's dilation.
    """

    blur: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        binomial = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("blur", torch.outer(binomial, binomial).expand(1, 1, 3, 3).clone(), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        channels = input.shape[1]
        kernel, dilation = self.blur.to(input.dtype).expand(channels, 1, 3, 3), self.dilation
        blurred = F.conv2d(input, kernel, padding=dilation, dilation=dilation, groups=channels)
        return super().forward(blurred)


def conv(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, blur: bool = False
) -> nn.Conv2d:
    """Build a convolution that is not dilated, see `planned_conv`."""
    plan = ConvPlan(in_channels=in_channels, out_channels=out_channels, kernel=kernel, stride=stride, groups=groups)
    return planned_conv(plan, blur=blur)


def planned_conv(plan: ConvPlan, *, blur: bool = False) -> nn.Conv2d:
    """Build a convolution whose padding keeps the size at stride one.

    `blur` applies only to strided convolutions with at least `MIN_BLURRED_CHANNELS` input channels; dilation may have
    replaced the stride.
    """
    blurred = blur and plan.strided and plan.in_channels >= MIN_BLURRED_CHANNELS
    dilation = plan.dilation if plan.kernel > 1 or blurred else 1  # a single tap has none, but its blur does
    return (BlurConv2d if blurred else nn.Conv2d)(
        plan.in_channels,
        plan.out_channels,
        plan.kernel,
        stride=plan.stride,
        padding=plan.kernel // 2 * dilation,
        dilation=dilation,
        groups=plan.groups,
        bias=False,
    )
