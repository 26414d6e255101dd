"""Table of the published networks: one `Variant` for each value of a recipe's `model.name`. No torch here.

The recipe's other `model` keys replace fields of the variant. Sources:

    resnet*, plain*          He et al. 2015 (arXiv 1512.03385): Table 1 and Figure 3; Section 4.2 for CIFAR
    resnext*                 Xie et al. 2017 (arXiv 1611.05431), by torchvision's names
    wide_resnet*_2           Zagoruyko and Komodakis 2016 (arXiv 1605.07146), by torchvision's names
    resnet50c, resnet*d      He et al. 2019 (arXiv 1812.01187), Figure 2, by timm's names
    seresnet50               Hu et al. 2018 (arXiv 1709.01507)
    ecaresnet50d             Wang et al. 2020 (arXiv 1910.03151)
    resnetrs*                Bello et al. 2021 (arXiv 2103.07579), Table 12
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

ImageNetName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "plain18",
    "plain34",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnet50c",
    "resnet18d",
    "resnet34d",
    "resnet50d",
    "resnet101d",
    "resnet152d",
    "resnet200d",
    "seresnet50",
    "ecaresnet50d",
    "resnetrs50",
    "resnetrs101",
    "resnetrs152",
    "resnetrs200",
    "resnetrs270",
    "resnetrs350",
    "resnetrs420",
]
CifarName = Literal[
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet1202",
    "plain20",
    "plain32",
    "plain44",
    "plain56",
    "plain110",
]
ModelName = Literal[ImageNetName, CifarName]

BlockKind = Literal["basic", "bottleneck"]
BlockOrder = Literal["post", "pre"]
Stem = Literal["7x7", "deep", "cifar"]
StemPool = Literal["max", "conv", "none"]
ShortcutOption = Literal["A", "B", "C"]
Shortcut = Literal["none", ShortcutOption]
StrideOn = Literal["1x1", "3x3"]
Projection = Literal["conv", "avgpool"]
AttentionKind = Literal["none", "se", "eca", "cbam"]
ActivationKind = Literal["relu", "prelu", "leaky_relu", "silu", "gelu", "mish", "hardswish", "elu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """Everything that decides a network's tensors and what it computes, apart from its number of classes."""

    depths: tuple[int, ...]
    """Blocks per stage."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Channels inside a block, per stage; a bottleneck ends with four times as many."""
    block: BlockKind = "basic"
    """basic = two 3x3 convolutions; bottleneck = 1x1, 3x3, 1x1 (Figure 5 of the paper)."""
    groups: int = 1
    """Groups of a bottleneck's 3x3 convolution (ResNeXt's cardinality)."""
    group_width: int = 64
    """Channels of one group where `widths` says 64: 4 in ResNeXt 32x4d, 128 in Wide ResNet-50-2."""
    block_order: BlockOrder = "post"
    """post = convolution, norm, activation; pre = norm, activation, convolution (v2, arXiv 1603.05027)."""
    stride_on: StrideOn = "3x3"
    """Convolution of a bottleneck that halves the image: the first 1x1 (v1, the paper's) or the 3x3 (v1.5)."""
    shortcut: Shortcut = "B"
    """Where the shape changes: A = zero padding, B = projection. C = projection in every block; none = plain net."""
    projection: Projection = "conv"
    """conv = 1x1 with the stride; avgpool = 2x2 average pooling, then a 1x1 of stride one (ResNet-D)."""
    stem: Stem = "7x7"
    """deep = three 3x3 convolutions (ResNet-C); cifar = one 3x3 at full size."""
    stem_pool: StemPool = "max"
    """conv = a 3x3 convolution of stride two instead of max pooling (ResNet-RS)."""
    attention: AttentionKind = "none"
    """Attention at the end of every residual branch."""
    attention_ratio: float = 1 / 16
    """Inner channels of SE and CBAM, as a fraction of the branch's channels."""
    activation: ActivationKind = "relu"
    blur_pool: bool = False
    """Blur the input of every convolution of stride two that has at least 16 input channels."""
    output_stride: int = 32
    """Most pixels of an image's side per position of the last features; later strides become dilation."""
    in_channels: int = 3

    @property
    def expansion(self) -> int:
        """Return the output channels of a block per channel of `widths`."""
        return 4 if self.block == "bottleneck" else 1

    @property
    def stride(self) -> int:
        """Return the pixels of an image's side per position of the last features; the positions are rounded up."""
        return min(self.stem_stride << (len(self.depths) - 1), self.output_stride)

    @property
    def stem_stride(self) -> int:
        """Return the pixels of an image's side per position of the first stage's input."""
        return 1 << (self.stem != "cifar") + (self.stem_pool != "none")

    @property
    def layers(self) -> int:
        """Return the number of weighted layers as in the names: stem, branches, classifier; a deep stem counts once."""
        return 2 + sum(self.depths) * (3 if self.block == "bottleneck" else 2)


def _bottleneck(*depths: int) -> Variant:
    return Variant(depths=depths, block="bottleneck")


def _cifar(n: int) -> Variant:
    """Return the CIFAR network of 6n + 2 layers (Section 4.2)."""
    return Variant(depths=(n, n, n), widths=(16, 32, 64), stem="cifar", stem_pool="none", shortcut="A")


def _plain(variant: Variant) -> Variant:
    return replace(variant, shortcut="none")


def _resnext(variant: Variant, groups: int, group_width: int) -> Variant:
    return replace(variant, groups=groups, group_width=group_width)


def _deep_stem(variant: Variant) -> Variant:
    return replace(variant, stem="deep")


def _d(variant: Variant) -> Variant:
    return replace(_deep_stem(variant), projection="avgpool")


def _rs(*depths: int) -> Variant:
    return replace(_d(_bottleneck(*depths)), stem_pool="conv", attention="se", attention_ratio=1 / 4)


_R18 = Variant(depths=(2, 2, 2, 2))
_R34 = Variant(depths=(3, 4, 6, 3))
_R50 = _bottleneck(3, 4, 6, 3)
_R101 = _bottleneck(3, 4, 23, 3)
_R152 = _bottleneck(3, 8, 36, 3)
_R200 = _bottleneck(3, 24, 36, 3)

VARIANTS: dict[ModelName, Variant] = {
    "resnet18": _R18,
    "resnet34": _R34,
    "resnet50": _R50,
    "resnet101": _R101,
    "resnet152": _R152,
    "plain18": _plain(_R18),
    "plain34": _plain(_R34),
    "resnext50_32x4d": _resnext(_R50, groups=32, group_width=4),
    "resnext101_32x8d": _resnext(_R101, groups=32, group_width=8),
    "resnext101_64x4d": _resnext(_R101, groups=64, group_width=4),
    "wide_resnet50_2": replace(_R50, group_width=128),
    "wide_resnet101_2": replace(_R101, group_width=128),
    "resnet50c": _deep_stem(_R50),
    "resnet18d": _d(_R18),
    "resnet34d": _d(_R34),
    "resnet50d": _d(_R50),
    "resnet101d": _d(_R101),
    "resnet152d": _d(_R152),
    "resnet200d": _d(_R200),
    "seresnet50": replace(_R50, attention="se"),
    "ecaresnet50d": replace(_d(_R50), attention="eca"),
    "resnetrs50": _rs(3, 4, 6, 3),
    "resnetrs101": _rs(3, 4, 23, 3),
    "resnetrs152": _rs(3, 8, 36, 3),
    "resnetrs200": _rs(3, 24, 36, 3),
    "resnetrs270": _rs(4, 29, 53, 4),
    "resnetrs350": _rs(4, 36, 72, 4),
    "resnetrs420": _rs(4, 44, 87, 4),
    "resnet20": _cifar(3),
    "resnet32": _cifar(5),
    "resnet44": _cifar(7),
    "resnet56": _cifar(9),
    "resnet110": _cifar(18),
    "resnet1202": _cifar(200),
    "plain20": _plain(_cifar(3)),
    "plain32": _plain(_cifar(5)),
    "plain44": _plain(_cifar(7)),
    "plain56": _plain(_cifar(9)),
    "plain110": _plain(_cifar(18)),
}


def check_growth(variant: Variant, depths: Sequence[int]) -> None:
    """Raise ValueError unless stage i can grow to depths[i] blocks with every new block starting as the identity."""
    now = list(variant.depths)
    if len(depths) != len(now) or any(new < old for new, old in zip(depths, now, strict=True)):
        raise ValueError(f"depths must be {len(now)} numbers, none below the present {now}: got {list(depths)}")
    if variant.shortcut in ("none", "C"):
        rule = {"none": "a plain network has no shortcuts", "C": "with option C every block projects its input"}
        raise ValueError(f"model.shortcut leaves no block that starts as the identity: {rule[variant.shortcut]}")
    if variant.block_order == "post" and variant.activation != "relu":
        raise ValueError(
            f'model.activation must be "relu" to grow a network, or model.block_order "pre": a new block would apply '
            f"{variant.activation} a second time to the output of the block before it"
        )
