"""From images to the first stage: a convolution, and what shrinks the image after it.

With norms in front of convolutions ("pre"), the stem ends in its convolution: the first block normalizes.
"""

from __future__ import annotations

from torch import nn

from resnet_core.config.variants import Variant
from resnet_core.models.activations import activation
from resnet_core.models.convs import conv


def stem_conv(variant: Variant) -> nn.Module:
    """Images to `widths[0]` channels, at half their size, or at full size for CIFAR."""
    channels = variant.widths[0]
    if variant.stem == "deep":
        return _deep(variant, channels)
    if variant.stem == "cifar":
        return conv(variant.in_channels, channels, kernel=3)
    return conv(variant.in_channels, channels, kernel=7, stride=2, blur=variant.blur_pool)


def stem_pool(variant: Variant) -> nn.Module:
    """Half the size again: 3x3 max pooling, which is never blurred, or ResNet-RS's convolution; for CIFAR, nothing."""
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
    """Three 3x3 convolutions, the first two half as wide (He et al. 2019, Figure 2b)."""
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
