"""Residual blocks: y = shortcut(x) + F(x), with norms and activations after the convolutions or before them.

Shapes: x is B x C x H x W; `survival` is B x 1 x 1 x 1, the factors of the images' branches in stochastic depth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from resnet_core.config.model import DropPathShape
from resnet_core.config.variants import Variant
from resnet_core.models.activations import activation
from resnet_core.models.attention import attention
from resnet_core.models.convs import planned_conv
from resnet_core.models.plan import BlockPlan, branch_plan
from resnet_core.models.shortcuts import shortcut


class ResidualBlock(nn.Module, ABC):
    """Parts of a block, with torchvision's names: conv1, bn1, act1, conv2, ..., attention, downsample.

    Basic block and bottleneck differ only in their convolutions (`branch_plan`). `downsample` is None in a plain net.
    """

    def __init__(self, plan: BlockPlan, variant: Variant) -> None:
        super().__init__()
        convs = branch_plan(plan, variant)
        self.plan = plan
        self.numbers = range(1, len(convs) + 1)
        for number, each in zip(self.numbers, convs, strict=True):
            normalized = each.in_channels if variant.block_order == "pre" else each.out_channels
            self.add_module(f"conv{number}", planned_conv(each, blur=variant.blur_pool))
            self.add_module(f"bn{number}", nn.BatchNorm2d(normalized))
            self.add_module(f"act{number}", activation(variant.activation, normalized))
        self.attention = attention(variant, plan.out_channels, plan.last_dilation)
        self.downsample = shortcut(plan, variant)

    @property
    @abstractmethod
    def last_norm(self) -> nn.Module:
        """Return the module whose weight scales the whole branch: the last norm, or a last convolution without norm."""

    @abstractmethod
    def forward(self, x: Tensor, survival: Tensor | None = None) -> Tensor: ...

    def _layers(self) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
        """Return (convolution, norm, activation) for every number."""
        return [
            (getattr(self, f"conv{number}"), getattr(self, f"bn{number}"), getattr(self, f"act{number}"))
            for number in self.numbers
        ]

    def _attend(self, out: Tensor, survival: Tensor | None) -> Tensor:
        """Apply attention and stochastic depth: the end of the branch."""
        if self.attention is not None:
            out = self.attention(out)
        return out if survival is None else out * survival.to(out.dtype)


class PostActivationBlock(ResidualBlock):
    """Block act(shortcut(x) + F(x)), F = conv, norm, act, ..., conv, norm (He et al. 2015, Figures 2 and 5)."""

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
    """Block shortcut(x) + F(x), F = norm, act, conv, ..., norm, act, conv (He et al. 2016, Figure 1b).

    A shortcut that changes the shape comes after the first norm and activation, which it shares with the branch.
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
    """Build a block in the variant's order of norm, activation and convolution."""
    return (PreActivationBlock if variant.block_order == "pre" else PostActivationBlock)(plan, variant)


def drop_rates(largest: float, shape: DropPathShape, blocks: int) -> list[float]:
    """Return each block's probability to be dropped; "linear": largest x l / L at block l of L (Huang 2016, eq. 4)."""
    if shape == "uniform":
        return [largest] * blocks
    return [largest * number / blocks for number in range(1, blocks + 1)]


def draw_survival(rates_L: Tensor, batch: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """Draw L tensors of B x 1 x 1 x 1: 0 if an image skips the block, else 1 / (1 - rate), so that the mean is 1."""
    keep_L1 = (1 - rates_L.float()).unsqueeze(1)
    drawn_LB = torch.rand(len(rates_L), batch, generator=generator, device=rates_L.device)
    return ((drawn_LB < keep_L1) / keep_L1).view(len(rates_L), batch, 1, 1, 1).unbind()


def draw_dropout(
    rate: float, shape_BC: tuple[int, int], device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Draw a tensor B x C: 0 with probability `rate`, else 1 / (1 - rate)."""
    return (torch.rand(shape_BC, generator=generator, device=device) >= rate) / (1 - rate)


def recomputed(block: nn.Module, x: Tensor, survival: Tensor | None) -> Tensor:
    """Return `block(x, survival)`, which the backward pass recomputes; running statistics are updated once only."""
    # compiled code updates running statistics once by itself, and does not accept contexts
    if torch.compiler.is_compiling():
        y: Tensor = checkpoint(block, x, survival, use_reentrant=False)
        return y

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    y = checkpoint(block, x, survival, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return y


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Keep the norms' running statistics and counts unchanged; norms still normalize by the batch's statistics."""
    norms = [module for module in block.modules() if isinstance(module, _NormBase)]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.get_buffer("num_batches_tracked").clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            norm.get_buffer("num_batches_tracked").copy_(count)
