"""Residual networks: the paper's (He et al. 2015, arXiv 1512.03385) and its successors, each from one `Variant`.

    config/variants.py      the variants, one per published name.
    plan.py                 shapes of a variant's blocks and convolutions.
    blocks.py, shortcuts.py, attention.py, activations.py, convs.py    parts of a network.
    growth.py               blocks added during training.
    freezing.py             parts that do not train, and learning rates that depend on the depth.
    weights.py              weights from and to other libraries.
    cost.py, published.py, table.py    costs and the published figures (python -m resnet_core).

Names and shapes of tensors are torchvision's where it has the network. Any image size works.

Shapes: B images, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from resnet_core.config.model import DropPathShape, ModelConfig
from resnet_core.config.variants import VARIANTS, CifarName, ModelName, Variant
from resnet_core.models.activations import activation
from resnet_core.models.blocks import ResidualBlock, build_block, draw_dropout, draw_survival, drop_rates, recomputed
from resnet_core.models.convs import conv
from resnet_core.models.plan import stage_plan


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average pooling, one linear layer."""

    drop_rates_L: Tensor

    def __init__(
        self,
        variant: Variant,
        num_classes: int,
        *,
        drop_path: float = 0.0,
        drop_path_shape: DropPathShape = "linear",
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.variant = variant
        self.drop_path, self.drop_path_shape, self.dropout = drop_path, drop_path_shape, dropout
        self.activation_checkpointing = activation_checkpointing
        self.drop_path_factor = 1.0
        self.frozen: tuple[str, ...] = ()
        """Names of the children that do not train, see `resnet_core.models.freezing`."""
        self.generator: torch.Generator | None = None
        plan = stage_plan(variant)
        channels, features = variant.widths[0], plan[-1][-1].out_channels
        pre = variant.block_order == "pre"
        self.conv1 = stem_conv(variant)
        self.bn1 = nn.Identity() if pre else nn.BatchNorm2d(channels)
        self.act1 = nn.Identity() if pre else activation(variant.activation, channels)
        self.maxpool = stem_pool(variant)
        self.stages = [f"layer{number}" for number in range(1, len(plan) + 1)]
        for name, blocks in zip(self.stages, plan, strict=True):
            self.add_module(name, nn.Sequential(*(build_block(block, variant) for block in blocks)))
        self.norm = nn.BatchNorm2d(features) if pre else nn.Identity()
        self.act = activation(variant.activation, features) if pre else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(features, num_classes)
        self.spread_drop_rates()
        if drop_path or dropout:
            _keep_masks_out_of_graphs()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits, B x K."""
        survivals, kept_BC = self._masks(images_BCHW.shape[0])
        x = self._stem(images_BCHW)
        for stage in self.stages:
            x = self._stage(stage, x, survivals)
        x = self.avgpool(self.act(self.norm(x))).flatten(1)
        if kept_BC is not None:
            x = x * kept_BC.to(x.dtype)
        logits_BK: Tensor = self.fc(x)
        return logits_BK

    def features(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return every stage's output, named after the paper's stages: C2 (conv2_x), C3, ...; no classifier.

        In an ImageNet network C2 to C5 are 4, 8, 16 and 32 times smaller than the image; an output stride is the
        greatest of these factors. In a pre-activation network they are the sums, not yet normalized.
        """
        survivals, _ = self._masks(images_BCHW.shape[0])
        x = self._stem(images_BCHW)
        outputs: dict[str, Tensor] = {}
        for number, stage in enumerate(self.stages, start=2):
            x = outputs[f"C{number}"] = self._stage(stage, x, survivals)
        return outputs

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen parts stay in evaluation mode, so their norms keep their statistics."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def blocks(self) -> list[tuple[str, ResidualBlock]]:
        """Return every block with its name, in order of depth: layer1.0 first."""
        return [
            (f"{stage}.{index}", block)
            for stage in self.stages
            for index, block in enumerate(self.get_submodule(stage).children())
            if isinstance(block, ResidualBlock)
        ]

    def spread_drop_rates(self) -> None:
        """Set every block's drop rate for the current number of blocks."""
        rates = drop_rates(self.drop_path, self.drop_path_shape, len(self.blocks()))
        device = next(self.parameters()).device
        self.register_buffer("drop_rates_L", torch.tensor(rates, device=device), persistent=False)

    def _stem(self, images_BCHW: Tensor) -> Tensor:
        x: Tensor = self.maxpool(self.act1(self.bn1(self.conv1(images_BCHW))))
        return x

    def _stage(self, stage: str, x: Tensor, survivals: Iterator[Tensor | None]) -> Tensor:
        trains = stage not in self.frozen
        twice = self.activation_checkpointing and self.training and trains and torch.is_grad_enabled()
        for block, survival in zip(self.get_submodule(stage).children(), survivals, strict=False):
            x = recomputed(block, x, survival) if twice else block(x, survival if trains else None)
        return x

    def _masks(self, batch: int) -> tuple[Iterator[Tensor | None], Tensor | None]:
        """Return the factors of the images' branches for each block, and those of the features; None = 1."""
        if not self.training or not (self.drop_path or self.dropout):
            return repeat(None), None
        survivals, kept_BC = _drawing(self, batch)
        return iter(survivals), kept_BC


_Masks = tuple[tuple[Tensor | None, ...], Tensor | None]


def _draw_masks(network: ResNet, batch: int) -> _Masks:
    """Draw the survival of each block, and the features that dropout keeps."""
    rates_L = network.drop_rates_L * network.drop_path_factor
    survivals: tuple[Tensor | None, ...] = (None,) * len(rates_L)
    if network.drop_path:
        survivals = draw_survival(rates_L, batch, network.generator)
    if not network.dropout:
        return survivals, None
    shape_BC = (batch, network.fc.in_features)
    return survivals, draw_dropout(network.dropout, shape_BC, rates_L.device, network.generator)


_drawing: Callable[[ResNet, int], _Masks] = _draw_masks


def _keep_masks_out_of_graphs() -> None:
    """Exclude `_draw_masks` from compilation: each step has another generator and factor, which would compile anew.

    Not a decorator: it imports torch's compiler, which takes two seconds of CPU in each process. Only networks that
    draw masks pay for it.
    """
    global _drawing
    if _drawing is _draw_masks:
        _drawing = torch.compiler.disable(_draw_masks)


def set_generator(model: nn.Module, generator: torch.Generator | None) -> None:
    """Set the generator of the masks of stochastic depth and dropout, in `model` or inside it.

    None = torch's global generator. The generator is on the model's device; every forward pass in training mode draws
    from it.
    """
    for network in _networks(model):
        network.generator = generator


def set_drop_path(model: nn.Module, factor: float) -> None:
    """Multiply the configured rates of stochastic depth, to schedule them over time; a factor of 0 drops no branch."""
    for network in _networks(model):
        if not 0 <= factor * network.drop_path < 1:
            raise ValueError(f"model.drop_path times its factor must be in [0, 1): got {network.drop_path} x {factor}")
        network.drop_path_factor = factor


def _networks(model: nn.Module) -> Iterator[ResNet]:
    return (module for module in model.modules() if isinstance(module, ResNet))


def initialize(model: nn.Module, *, zero_init_last: bool) -> None:
    """Initialize convolutions by He's method, fan-out form as in torchvision (He et al. 2015b, arXiv 1502.01852).

    Norms keep torch's default, the identity, and the linear layer keeps torch's default.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if zero_init_last:
        for module in model.modules():
            if isinstance(module, ResidualBlock):
                zero_last_scale(module)


def zero_last_scale(block: ResidualBlock) -> None:
    """Start the block's residual branch at zero."""
    nn.init.zeros_(block.last_norm.get_parameter("weight"))


def build_model(config: ModelConfig | ModelName, **keys: Any) -> ResNet:
    """Build a freshly initialized network from torch's global generator.

    The first argument is a `ModelConfig` or a published name; `keys` change its fields, as in
    `build_model("resnet50", num_classes=10)`. By name the default is 1,000 classes, or 10 for a CIFAR network.

    Raises:
        ValueError: the name is unknown, the number of classes is not set, or keys do not fit together.
        TypeError: a key is unknown.
    """
    if isinstance(config, str):
        config = ModelConfig(name=config, **{"num_classes": _classes(config), **keys})
    elif keys:
        config = replace(config, **keys)
    if config.num_classes < 1:
        raise ValueError(f"model.num_classes must be at least 1 to build a model: got {config.num_classes}")
    model = ResNet(
        config.variant,
        config.num_classes,
        drop_path=config.drop_path,
        drop_path_shape=config.drop_path_shape,
        dropout=config.dropout,
        activation_checkpointing=config.activation_checkpointing,
    )
    initialize(model, zero_init_last=config.zero_init_last)
    if config.prior_bias:
        nn.init.constant_(model.fc.bias, -math.log(config.num_classes))
    return model


def builder(name: ModelName) -> Callable[..., ResNet]:
    """Return the function that builds the network `name`."""

    def build(num_classes: int = _classes(name), **keys: Any) -> ResNet:
        return build_model(name, num_classes=num_classes, **keys)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""Build a freshly initialized {name} of {VARIANTS[name].layers} layers.

    `keys` are the fields of `resnet_core.ModelConfig`, as in a recipe's section `model`: drop_path, stem, attention, …
    """
    return build


def feature_channels(model: ResNet | ModelName) -> dict[str, int]:
    """Return the channels of every output of `ResNet.features`: {"C2": 256, …, "C5": 2048} for ResNet-50."""
    variant = VARIANTS[model] if isinstance(model, str) else model.variant
    return {f"C{number}": blocks[-1].out_channels for number, blocks in enumerate(stage_plan(variant), start=2)}


def _classes(name: ModelName) -> int:
    """Return the number of classes of the data set for which a network was published."""
    return 10 if name in get_args(CifarName) else 1000


def stem_conv(variant: Variant) -> nn.Module:
    """Build the first layer: images to `widths[0]` channels, at half their size, or at full size for CIFAR."""
    channels = variant.widths[0]
    if variant.stem == "deep":
        return _deep(variant, channels)
    if variant.stem == "cifar":
        return conv(variant.in_channels, channels, kernel=3)
    return conv(variant.in_channels, channels, kernel=7, stride=2, blur=variant.blur_pool)


def stem_pool(variant: Variant) -> nn.Module:
    """Build the layer that halves the size again: 3x3 max pooling (never blurred) or ResNet-RS's convolution.

    CIFAR networks have none.
    """
    channels = variant.widths[0]
    match variant.stem_pool:
        case "max":
            return nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        case "conv":
            return nn.Sequential(
                conv(channels, channels, kernel=3, stride=2, blur=variant.blur_pool),
                nn.BatchNorm2d(channels),
                activation(variant.activation, channels),
            )
        case "none":
            return nn.Identity()


def _deep(variant: Variant, channels: int) -> nn.Sequential:
    """Build three 3x3 convolutions, the first two half as wide (He et al. 2019, Figure 2b)."""
    half = channels // 2
    return nn.Sequential(
        conv(variant.in_channels, half, kernel=3, stride=2, blur=variant.blur_pool),
        nn.BatchNorm2d(half),
        activation(variant.activation, half),
        conv(half, half, kernel=3),
        nn.BatchNorm2d(half),
        activation(variant.activation, half),
        conv(half, channels, kernel=3),
    )
