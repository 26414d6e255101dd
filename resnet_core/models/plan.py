"""Shapes of every block and convolution, computed from a `Variant`; the paper's are in its Table 1."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_core.config.variants import Variant


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockPlan:
    """Shape of one residual block: channels in, inside and out, and the stride of its strided convolution."""

    in_channels: int
    width: int
    out_channels: int
    stride: int

    @property
    def keeps_shape(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvPlan:
    """Shape of one convolution of a residual branch."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    groups: int = 1


def stage_plan(variant: Variant) -> list[list[BlockPlan]]:
    """Return the blocks of every stage; the first block of every stage except the first halves the image."""
    plan: list[list[BlockPlan]] = []
    in_channels = variant.widths[0]
    for stage, (depth, width) in enumerate(zip(variant.depths, variant.widths, strict=True)):
        inside = width * variant.group_width // 64 * variant.groups
        out_channels = width * variant.expansion
        first = BlockPlan(
            in_channels=in_channels, width=inside, out_channels=out_channels, stride=1 if stage == 0 else 2
        )
        plan.append([first] + [following(first)] * (depth - 1))
        in_channels = out_channels
    return plan


def following(plan: BlockPlan) -> BlockPlan:
    """Return the plan of the next block of the same stage."""
    return BlockPlan(in_channels=plan.out_channels, width=plan.width, out_channels=plan.out_channels, stride=1)


def branch_plan(plan: BlockPlan, variant: Variant) -> tuple[ConvPlan, ...]:
    """Return the convolutions of one residual branch (Figure 5): 3x3, 3x3, or 1x1, 3x3, 1x1."""
    if variant.block == "basic":
        return (
            ConvPlan(in_channels=plan.in_channels, out_channels=plan.width, kernel=3, stride=plan.stride),
            ConvPlan(in_channels=plan.width, out_channels=plan.out_channels, kernel=3),
        )
    first, second = (plan.stride, 1) if variant.stride_on == "1x1" else (1, plan.stride)
    return (
        ConvPlan(in_channels=plan.in_channels, out_channels=plan.width, kernel=1, stride=first),
        ConvPlan(in_channels=plan.width, out_channels=plan.width, kernel=3, stride=second, groups=variant.groups),
        ConvPlan(in_channels=plan.width, out_channels=plan.out_channels, kernel=1),
    )
