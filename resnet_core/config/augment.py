"""What the device does to images: the recipe's section `augment`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from resnet_core.config.check import require

Rgb = tuple[float, float, float]

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """What happens to uint8 images on the device, after the crop that the data tasks make."""

    flip: bool = False
    """Mirror each training image with probability one half."""
    mean: Rgb = IMAGENET_MEAN
    """Per channel, with images in [0, 1]."""
    std: Rgb = IMAGENET_STD
    """Per channel, with images in [0, 1]."""

    def __post_init__(self) -> None:
        rgb = 3
        require(len(self.mean) == rgb and all(map(math.isfinite, self.mean)), "augment.mean", "3 numbers", self.mean)
        require(
            len(self.std) == rgb and all(0 < value < math.inf for value in self.std),
            "augment.std",
            "3 positive numbers",
            self.std,
        )
