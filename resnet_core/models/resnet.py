"""Residual networks as the paper's tables have them (He et al. 2015, arXiv 1512.03385).

ImageNet, Table 1 (state_dict keys and shapes are torchvision's):

    name         block        blocks per stage   stage widths          parameters
    resnet18     basic        2, 2,  2, 2        64, 128, 256, 512     11,689,512
    resnet34     basic        3, 4,  6, 3                              21,797,672
    resnet50     bottleneck   3, 4,  6, 3        (each x4 at its end)  25,557,032
    resnet101    bottleneck   3, 4, 23, 3                              44,549,160
    resnet152    bottleneck   3, 8, 36, 3                              60,192,808

CIFAR, Section 4.2 (6n + 2 layers, n basic blocks per stage, option-A shortcuts):

    name         n            stage widths       parameters
    resnet20     3            16, 32, 64            269,722
    resnet32     5                                  464,154
    resnet44     7                                  658,586
    resnet56     9                                  853,018
    resnet110    18                               1,727,962
    resnet1202   200                             19,421,274

Shapes: B images, C channels, H and W pixels, K classes. Any H and W will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.config import ModelConfig, ModelName


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockPlan:
    """Shape of one residual block: channels in, inside and out, and the stride of its first spatial step."""

    in_channels: int
    width: int
    out_channels: int
    stride: int

    @property
    def keeps_shape(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels


def stage_plan(
    *, depths: Sequence[int], widths: Sequence[int], stem_channels: int, expansion: int
) -> list[list[BlockPlan]]:
    """The blocks of every stage. All stages but the first halve the image in their first block.

    depths: blocks per stage; widths: channels inside a block, per stage; expansion: channels out per channel inside.
    """
    plan: list[list[BlockPlan]] = []
    in_channels = stem_channels
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        out_channels = width * expansion
        first = BlockPlan(
            in_channels=in_channels, width=width, out_channels=out_channels, stride=1 if stage == 0 else 2
        )
        rest = BlockPlan(in_channels=out_channels, width=width, out_channels=out_channels, stride=1)
        plan.append([first] + [rest] * (depth - 1))
        in_channels = out_channels
    return plan


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


class BasicBlock(nn.Module):
    """relu(x + F(x)) with F = 3x3, BN, relu, 3x3, BN (Figure 5, left)."""

    expansion: ClassVar[int] = 1

    def __init__(self, plan: BlockPlan, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = conv3x3(plan.in_channels, plan.width, plan.stride)
        self.bn1 = nn.BatchNorm2d(plan.width)
        self.conv2 = conv3x3(plan.width, plan.out_channels)
        self.bn2 = nn.BatchNorm2d(plan.out_channels)
        self.downsample = shortcut

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return F.relu(out, inplace=True)


class Bottleneck(nn.Module):
    """relu(x + F(x)) with F = 1x1, BN, relu, 3x3, BN, relu, 1x1, BN (Figure 5, right).

    The stride is on the 3x3, as torchvision has it ("v1.5"); the paper's own model has it on the first 1x1.
    """

    expansion: ClassVar[int] = 4

    def __init__(self, plan: BlockPlan, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = conv1x1(plan.in_channels, plan.width)
        self.bn1 = nn.BatchNorm2d(plan.width)
        self.conv2 = conv3x3(plan.width, plan.width, plan.stride)
        self.bn2 = nn.BatchNorm2d(plan.width)
        self.conv3 = conv1x1(plan.width, plan.out_channels)
        self.bn3 = nn.BatchNorm2d(plan.out_channels)
        self.downsample = shortcut

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += self.downsample(x)
        return F.relu(out, inplace=True)


class PaddingShortcut(nn.Module):
    """Option A: every stride-th pixel, and zeros for the channels that are new; no parameters."""

    def __init__(self, plan: BlockPlan) -> None:
        super().__init__()
        self.stride = plan.stride
        self.new_channels = plan.out_channels - plan.in_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def projection_shortcut(plan: BlockPlan) -> nn.Module:
    """Option B, where the shape changes: 1x1 convolution and BN."""
    return nn.Sequential(conv1x1(plan.in_channels, plan.out_channels, plan.stride), nn.BatchNorm2d(plan.out_channels))


def imagenet_stem(channels: int) -> tuple[nn.Conv2d, nn.Module]:
    """Two halvings: 7x7 convolution, 3x3 max pooling."""
    conv = nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3, bias=False)
    return conv, nn.MaxPool2d(kernel_size=3, stride=2, padding=1)


def cifar_stem(channels: int) -> tuple[nn.Conv2d, nn.Module]:
    """3x3 convolution at full size, no pooling."""
    return conv3x3(3, channels), nn.Identity()


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One row of the tables above."""

    depths: tuple[int, ...]  # blocks per stage
    widths: tuple[int, ...] = (64, 128, 256, 512)
    block: type[BasicBlock] | type[Bottleneck] = BasicBlock
    stem: Callable[[int], tuple[nn.Conv2d, nn.Module]] = imagenet_stem
    shortcut: Callable[[BlockPlan], nn.Module] = projection_shortcut


def _cifar(n: int) -> Variant:
    return Variant(depths=(n, n, n), widths=(16, 32, 64), stem=cifar_stem, shortcut=PaddingShortcut)


VARIANTS: dict[ModelName, Variant] = {
    "resnet18": Variant(depths=(2, 2, 2, 2)),
    "resnet34": Variant(depths=(3, 4, 6, 3)),
    "resnet50": Variant(depths=(3, 4, 6, 3), block=Bottleneck),
    "resnet101": Variant(depths=(3, 4, 23, 3), block=Bottleneck),
    "resnet152": Variant(depths=(3, 8, 36, 3), block=Bottleneck),
    "resnet20": _cifar(3),
    "resnet32": _cifar(5),
    "resnet44": _cifar(7),
    "resnet56": _cifar(9),
    "resnet110": _cifar(18),
    "resnet1202": _cifar(200),
}


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pooling, one linear layer."""

    def __init__(self, variant: Variant, num_classes: int) -> None:
        super().__init__()
        stem_channels = variant.widths[0]
        self.conv1, self.maxpool = variant.stem(stem_channels)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        plan = stage_plan(
            depths=variant.depths,
            widths=variant.widths,
            stem_channels=stem_channels,
            expansion=variant.block.expansion,
        )
        self.stages = [f"layer{number}" for number in range(1, len(plan) + 1)]
        for name, blocks in zip(self.stages, plan, strict=True):
            self.add_module(name, nn.Sequential(*(self._block(variant, block) for block in blocks)))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(plan[-1][-1].out_channels, num_classes)

    @staticmethod
    def _block(variant: Variant, plan: BlockPlan) -> nn.Module:
        return variant.block(plan, nn.Identity() if plan.keeps_shape else variant.shortcut(plan))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, B x K."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(images_BCHW)), inplace=True))
        for name in self.stages:
            x = getattr(self, name)(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def initialize(model: nn.Module, *, zero_init_last: bool) -> None:
    """He initialization of the convolutions, fan-out form as in torchvision (He et al. 2015b, arXiv 1502.01852).

    Norms start as the identity and the linear layer at torch's default, so nothing else is to be set.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif zero_init_last and isinstance(module, BasicBlock | Bottleneck):
            nn.init.zeros_(module.last_norm.weight)


def build_model(config: ModelConfig) -> ResNet:
    """A freshly initialized network from torch's global generator; ValueError while the classes are unknown."""
    if config.num_classes < 1:
        raise ValueError(f"model.num_classes must be at least 1 to build a model: got {config.num_classes}")
    model = ResNet(VARIANTS[config.name], config.num_classes)
    initialize(model, zero_init_last=config.zero_init_last)
    return model
