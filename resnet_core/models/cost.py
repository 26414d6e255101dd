"""Cost of a network: parameters, and multiply-adds of a forward pass. No tensor is ever filled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from resnet_core.config.variants import Variant
from resnet_core.models.convs import BlurConv2d
from resnet_core.models.resnet import ResNet


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Cost of a network, including its classifier."""

    parameters: int
    multiply_adds: int
    """Multiply-adds of convolutions and linear layers for one image; papers often call twice this number FLOPs."""


@cache
def cost(variant: Variant, *, size: int, num_classes: int) -> Cost:
    """Compute the cost for square images of `size` pixels a side, with a network on torch's meta device."""
    with torch.device("meta"):
        model = ResNet(variant, num_classes).eval()
        images_BCHW = torch.empty(1, variant.in_channels, size, size)
    parameters = parameter_count(model)
    _leave_out_what_does_not_count(model)
    return Cost(parameters=parameters, multiply_adds=multiply_adds(model, images_BCHW))


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, images_BCHW: torch.Tensor) -> int:
    """Count the multiply-adds of all images, with blur filters and attention.

    Norms, activations, pooling and sums are not counted.
    """
    total = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.get_parameter("weight")[0].numel()
        if isinstance(layer, BlurConv2d):
            total += inputs[0].numel() * layer.blur.numel()

    layers = [module for module in model.modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(images_BCHW)
    for hook in hooks:
        hook.remove()
    return total


class _OnePixel(nn.Module):
    """Cuts a pixel out, (B, C, H, W) to (B, C, 1, 1): the shape of pooling."""

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return x_BCHW[..., :1, :1]


def _leave_out_what_does_not_count(model: nn.Module) -> None:
    """Leave out norms, global pooling and the biases of linear layers, which are not counted.

    On the meta device norms take three quarters of the time; averages and biases import torch's compiler, two seconds.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                module.add_module(name, nn.Identity())
            elif isinstance(child, nn.AdaptiveAvgPool2d):
                module.add_module(name, _OnePixel())
            elif isinstance(child, nn.Linear):
                child.register_parameter("bias", None)
