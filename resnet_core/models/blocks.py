"""Residual blocks: y = shortcut(x) + F(x), with norms and activations behind the convolutions, or in front of them.

Shapes: x is B x C x H x W; `survival` is B x 1 x 1 x 1, what stochastic depth multiplies an image's branch by.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from resnet_core.config.variants import Variant
from resnet_core.models.activations import activation
from resnet_core.models.attention import attention
from resnet_core.models.convs import conv
from resnet_core.models.plan import BlockPlan, branch_plan
from resnet_core.models.shortcuts import shortcut


class ResidualBlock(nn.Module, ABC):
    """The parts of a block, named as in torchvision: conv1, bn1, act1, conv2, ..., attention, downsample.

    Basic block and bottleneck differ in their convolutions alone (`branch_plan`). `downsample` is None in a plain net.
    """

    def __init__(self, plan: BlockPlan, variant: Variant) -> None:
        super().__init__()
        convs = branch_plan(plan, variant)
        self.plan = plan
        self.numbers = range(1, len(convs) + 1)
        for number, each in zip(self.numbers, convs, strict=True):
            normalized = each.in_channels if variant.block_order == "pre" else each.out_channels
            layer = conv(
                each.in_channels,
                each.out_channels,
                each.kernel,
                stride=each.stride,
                groups=each.groups,
                blur=variant.blur_pool,
            )
            self.add_module(f"conv{number}", layer)
            self.add_module(f"bn{number}", nn.BatchNorm2d(normalized))
            self.add_module(f"act{number}", activation(variant.activation, normalized))
        self.attention = attention(variant, plan.out_channels)
        self.downsample = shortcut(plan, variant)

    @property
    @abstractmethod
    def last_norm(self) -> nn.Module:
        """The module whose weight scales the whole branch: its last norm, or the convolution if it ends in one."""

    @abstractmethod
    def forward(self, x: Tensor, survival: Tensor | None = None) -> Tensor: ...

    def _layers(self) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
        """Convolution, norm and activation of every number."""
        return [
            (getattr(self, f"conv{number}"), getattr(self, f"bn{number}"), getattr(self, f"act{number}"))
            for number in self.numbers
        ]

    def _attend(self, out: Tensor, survival: Tensor | None) -> Tensor:
        """The end of the branch."""
        if self.attention is not None:
            out = self.attention(out)
        return out if survival is None else out * survival.to(out.dtype)


class PostActivationBlock(ResidualBlock):
    """act(shortcut(x) + F(x)), F = conv, norm, act, ..., conv, norm (He et al. 2015, Figures 2 and 5)."""

    @property
    def last_norm(self) -> nn.Module:
        return self.get_submodule(f"bn{self.numbers[-1]}")

    def forward(self, x: Tensor, survival: Tensor | None = None) -> Tensor:
        *inner, (last_conv, last_norm, last_act) = self._layers()
        out = x
        for convolution, norm, act in inner:
            out = act(norm(convolution(out)))
        out = self._attend(last_norm(last_conv(out)), survival)
        if self.downsample is not None:
            out += self.downsample(x)
        y: Tensor = last_act(out)
        return y


class PreActivationBlock(ResidualBlock):
    """shortcut(x) + F(x), F = norm, act, conv, ..., norm, act, conv (He et al. 2016, Figure 1b).

    A shortcut that changes the shape comes behind the first norm and activation, which it shares with the branch.
    """

    @property
    def last_norm(self) -> nn.Module:
        return self.get_submodule(f"conv{self.numbers[-1]}")

    def forward(self, x: Tensor, survival: Tensor | None = None) -> Tensor:
        (first_conv, first_norm, first_act), *others = self._layers()
        activated = first_act(first_norm(x))
        out = first_conv(activated)
        for convolution, norm, act in others:
            out = convolution(act(norm(out)))
        out = self._attend(out, survival)
        if self.downsample is not None:
            out += x if isinstance(self.downsample, nn.Identity) else self.downsample(activated)
        return out


def build_block(plan: BlockPlan, variant: Variant) -> ResidualBlock:
    """The block of the variant's order."""
    return (PreActivationBlock if variant.block_order == "pre" else PostActivationBlock)(plan, variant)
