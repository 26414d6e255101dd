"""Residual networks: the paper's (He et al. 2015, arXiv 1512.03385) and what came after, each from one row of data.

    config/variants.py    the rows, one per published name
    plan.py               a row as the shapes of its blocks and convolutions
    stems.py, blocks.py, shortcuts.py, attention.py, activations.py, convs.py    the parts
    growth.py, weights.py    blocks added during training; weights from and for other libraries
    cost.py, published.py    what a network costs, beside the published figures: python -m resnet_core

Names and shapes of tensors are torchvision's where it has the network. Any image size will do.

Shapes: B images, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat
from typing import Any, get_args

import torch
from torch import Tensor, nn

from resnet_core.config.model import DropPathShape, ModelConfig
from resnet_core.config.variants import VARIANTS, CifarName, ModelName, Variant
from resnet_core.models.activations import activation
from resnet_core.models.blocks import ResidualBlock, build_block
from resnet_core.models.drop import draw_dropout, draw_survival, drop_rates
from resnet_core.models.plan import stage_plan
from resnet_core.models.recompute import recomputed
from resnet_core.models.stems import stem_conv, stem_pool


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

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits, B x K."""
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
        """What every stage gives, by the paper's names of the stages: C2 (of conv2_x), C3, ...; no classifier.

        In an ImageNet network C2 to C5 are 4, 8, 16 and 32 times smaller than the image. In a pre-activation network
        they are the sums themselves, not yet normalized.
        """
        survivals, _ = self._masks(images_BCHW.shape[0])
        x = self._stem(images_BCHW)
        outputs: dict[str, Tensor] = {}
        for number, stage in enumerate(self.stages, start=2):
            x = outputs[f"C{number}"] = self._stage(stage, x, survivals)
        return outputs

    def blocks(self) -> list[tuple[str, ResidualBlock]]:
        """Every block with its name, in the order of depth: layer1.0 first."""
        return [
            (f"{stage}.{index}", block)
            for stage in self.stages
            for index, block in enumerate(self.get_submodule(stage).children())
            if isinstance(block, ResidualBlock)
        ]

    def spread_drop_rates(self) -> None:
        """Spread the largest drop rate over the blocks that there are now."""
        rates = drop_rates(self.drop_path, self.drop_path_shape, len(self.blocks()))
        self.register_buffer("drop_rates_L", torch.tensor(rates, device=self.fc.weight.device), persistent=False)

    def _stem(self, images_BCHW: Tensor) -> Tensor:
        x: Tensor = self.maxpool(self.act1(self.bn1(self.conv1(images_BCHW))))
        return x

    def _stage(self, stage: str, x: Tensor, survivals: Iterator[Tensor | None]) -> Tensor:
        twice = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        for block, survival in zip(self.get_submodule(stage).children(), survivals, strict=False):
            x = recomputed(block, x, survival) if twice else block(x, survival)
        return x

    def _masks(self, batch: int) -> tuple[Iterator[Tensor | None], Tensor | None]:
        """For each block what its images' branches are multiplied by, and the same for the features; None = 1."""
        if not self.training or not (self.drop_path or self.dropout):
            return repeat(None), None
        survivals, kept_BC = self._draw_masks(batch)
        return iter(survivals), kept_BC

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a new generator, or another factor, at every step must not mean to compile again
    def _draw_masks(self, batch: int) -> tuple[tuple[Tensor | None, ...], Tensor | None]:
        rates_L = self.drop_rates_L * self.drop_path_factor
        survivals: tuple[Tensor | None, ...] = (None,) * len(rates_L)
        if self.drop_path:
            survivals = draw_survival(rates_L, batch, self.generator)
        if not self.dropout:
            return survivals, None
        shape_BC = (batch, self.fc.in_features)
        return survivals, draw_dropout(self.dropout, shape_BC, rates_L.device, self.generator)


def set_generator(model: nn.Module, generator: torch.Generator | None) -> None:
    """Where the masks of stochastic depth and dropout come from, in `model` or inside it; None = torch's global one.

    The generator is on the model's device and moves on with every forward pass in training mode.
    """
    for network in _networks(model):
        network.generator = generator


def set_drop_path(model: nn.Module, factor: float) -> None:
    """Multiply the configured rates of stochastic depth: its schedule in time. A factor of 0 keeps every branch."""
    for network in _networks(model):
        if not 0 <= factor * network.drop_path < 1:
            raise ValueError(f"model.drop_path times its factor must be in [0, 1): got {network.drop_path} x {factor}")
        network.drop_path_factor = factor


def _networks(model: nn.Module) -> Iterator[ResNet]:
    return (module for module in model.modules() if isinstance(module, ResNet))


def initialize(model: nn.Module, *, zero_init_last: bool) -> None:
    """He initialization of the convolutions, fan-out form as in torchvision (He et al. 2015b, arXiv 1502.01852).

    Norms start as the identity and the linear layer at torch's default, so nothing else is to be set.
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

    Takes a `ModelConfig`, or a published name with other keys of it: `build_model("resnet50", num_classes=10)`. By name
    the default is 1,000 classes, or 10 of a CIFAR network.

    Raises:
        ValueError: unknown name, unknown number of classes, or keys that do not fit together.
        TypeError: unknown key.
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
    """Return the function that builds the network of a name."""

    def build(num_classes: int = _classes(name), **keys: Any) -> ResNet:
        return build_model(name, num_classes=num_classes, **keys)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""Build a freshly initialized {name} of {VARIANTS[name].layers} layers.

    `keys` are those of `resnet_core.ModelConfig`, which `model` in a recipe has too: drop_path, stem, attention, …
    """
    return build


def feature_channels(model: ResNet | ModelName) -> dict[str, int]:
    """Channels of every output of `ResNet.features`, by the same names: {"C2": 256, …, "C5": 2048} of ResNet-50."""
    variant = VARIANTS[model] if isinstance(model, str) else model.variant
    return {f"C{number}": blocks[-1].out_channels for number, blocks in enumerate(stage_plan(variant), start=2)}


def _classes(name: ModelName) -> int:
    """Of the data set that a name was published for."""
    return 10 if name in get_args(CifarName) else 1000
