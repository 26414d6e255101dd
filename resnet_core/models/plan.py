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
    dilation: int = 1
    """Dilation up to the strided convolution, which has it too."""
    replaced_stride: int = 1
    """Stride of the published network that dilation replaces."""

    @property
    def keeps_shape(self) -> bool:
        """Return whether the published block keeps the shape: dilation changes no shortcut."""
        return self.stride * self.replaced_stride == 1 and self.in_channels == self.out_channels

    @property
    def last_dilation(self) -> int:
        """Return the dilation after the strided convolution."""
        return self.dilation * self.replaced_stride


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvPlan:
    """Shape of one convolution of a residual branch."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    replaced_stride: int = 1
    """Stride of the published network that dilation replaces."""

    @property
    def strided(self) -> bool:
        """Return whether the published convolution has a stride."""
        return self.stride * self.replaced_stride > 1


def stage_plan(variant: Variant) -> list[list[BlockPlan]]:
    """Return the blocks of every stage; the first block of every stage except the first halves the image.

    Beyond `variant.output_stride` it keeps the size, and all convolutions after the strided one are dilated. Every
    second position, in both directions, then has the values of the network with the stride (Chen et al. 2017, arXiv
    1706.05587, Section 3.1). torchvision calls it `replace_stride_with_dilation`.
    """
    plan: list[list[BlockPlan]] = []
    in_channels, reached, dilation = variant.widths[0], variant.stem_stride, 1
    for stage, (depth, width) in enumerate(zip(variant.depths, variant.widths, strict=True)):
        inside = width * variant.group_width // 64 * variant.groups
        out_channels = width * variant.expansion
        published = 1 if stage == 0 else 2
        stride = published if reached * published <= variant.output_stride else 1
        first = BlockPlan(
            in_channels=in_channels,
            width=inside,
            out_channels=out_channels,
            stride=stride,
            dilation=dilation,
            replaced_stride=published // stride,
        )
        plan.append([first] + [following(first)] * (depth - 1))
        in_channels, reached, dilation = out_channels, reached * stride, first.last_dilation
    return plan


def following(plan: BlockPlan) -> BlockPlan:
    """Return the plan of the next block of the same stage."""
    channels = plan.out_channels
    return BlockPlan(
        in_channels=channels, width=plan.width, out_channels=channels, stride=1, dilation=plan.last_dilation
    )


def branch_plan(plan: BlockPlan, variant: Variant) -> tuple[ConvPlan, ...]:
    """Return the convolutions of one residual branch (Figure 5): 3x3, 3x3, or 1x1, 3x3, 1x1."""
    before, after = {"dilation": plan.dilation}, {"dilation": plan.last_dilation}
    at = {**before, "stride": plan.stride, "replaced_stride": plan.replaced_stride}
    if variant.block == "basic":
        return (
            ConvPlan(in_channels=plan.in_channels, out_channels=plan.width, kernel=3, **at),
            ConvPlan(in_channels=plan.width, out_channels=plan.out_channels, kernel=3, **after),
        )
    first, second = (at, after) if variant.stride_on == "1x1" else (before, at)
    return (
        ConvPlan(in_channels=plan.in_channels, out_channels=plan.width, kernel=1, **first),
        ConvPlan(in_channels=plan.width, out_channels=plan.width, kernel=3, groups=variant.groups, **second),
        ConvPlan(in_channels=plan.width, out_channels=plan.out_channels, kernel=1, **after),
    )
