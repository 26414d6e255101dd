"""Small networks of every kind, and state that hides nothing: norms at random, no scale at one or zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from resnet_core.config import ModelConfig
from resnet_core.config.variants import Variant
from resnet_core.models import ResNet, build_model
from resnet_core.models.resnet import initialize


def build(name: Any, num_classes: int = 0, **options: Any) -> Any:
    classes = num_classes or (10 if ModelConfig(name=name).family == "cifar" else 1000)
    return build_model(ModelConfig(name=name, num_classes=classes, **options))


def small(num_classes: int = 3, *, regularization: dict[str, Any] | None = None, **fields: Any) -> Any:
    """Two stages of two blocks, 16 and 32 channels wide: any `Variant` field can be given."""
    torch.manual_seed(0)
    defaults = {"depths": (2, 2), "widths": (16, 32), "stem": "cifar", "stem_pool": "none"}
    model = ResNet(Variant(**{**defaults, **fields}), num_classes, **(regularization or {}))
    initialize(model, zero_init_last=False)
    return model


@torch.no_grad()
def randomize_norms(model: nn.Module, seed: int = 0) -> None:
    """Scales, shifts and running statistics of every norm."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.2, generator=generator)
            module.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
