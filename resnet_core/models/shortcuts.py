"""What a block adds to its residual branch: options A, B and C of the paper (Section 4.1), and ResNet-D's.

Shapes: B images, C channels, H and W pixels; a stride of two gives ceil(H / 2), as in the branch.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.config.variants import Variant
from resnet_core.models.convs import conv
from resnet_core.models.plan import BlockPlan


def shortcut(plan: BlockPlan, variant: Variant) -> nn.Module | None:
    """The block's shortcut by the variant's option; None in a plain network."""
    if variant.shortcut == "none":
        return None
    if plan.keeps_shape and variant.shortcut != "C":
        return nn.Identity()
    if variant.shortcut == "A":
        return PaddingShortcut(plan)
    return pre_projection(plan, variant) if variant.block_order == "pre" else projection(plan, variant)


class PaddingShortcut(nn.Module):
    """Option A: every stride-th pixel, and zeros for the channels that are new; no parameters."""

    def __init__(self, plan: BlockPlan) -> None:
        super().__init__()
        self.stride = plan.stride
        self.new_channels = plan.out_channels - plan.in_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def projection(plan: BlockPlan, variant: Variant) -> nn.Sequential:
    """Options B and C: 1x1 convolution and norm; names of tensors as in torchvision, or timm with pooling."""
    norm = nn.BatchNorm2d(plan.out_channels)
    if variant.projection == "avgpool":
        return nn.Sequential(_pool(plan.stride), conv(plan.in_channels, plan.out_channels, 1), norm)
    return nn.Sequential(_strided(plan, variant), norm)


def pre_projection(plan: BlockPlan, variant: Variant) -> nn.Sequential:
    """The same behind a shared norm and activation: the 1x1 convolution alone (He et al. 2016, Section 4.2)."""
    if variant.projection == "avgpool":
        return nn.Sequential(
            OrderedDict(pool=_pool(plan.stride), conv=conv(plan.in_channels, plan.out_channels, kernel=1))
        )
    return nn.Sequential(OrderedDict(conv=_strided(plan, variant)))


def _strided(plan: BlockPlan, variant: Variant) -> nn.Conv2d:
    return conv(plan.in_channels, plan.out_channels, kernel=1, stride=plan.stride, blur=variant.blur_pool)


def _pool(stride: int) -> nn.Module:
    """Average over 2x2 pixels (He et al. 2019, Figure 2c); at a ragged edge, over those that there are."""
    if stride == 1:
        return nn.Identity()
    return nn.AvgPool2d(kernel_size=2, stride=stride, ceil_mode=True, count_include_pad=False)
