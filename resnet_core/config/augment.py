"""What the device does to images: the recipe's section `augment`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from resnet_core.config.check import require, require_choice

Rgb = tuple[float, float, float]
EraseMode = Literal["zero", "noise"]

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """What happens to uint8 images on the device, after the crop and the policy of the data tasks.

    In this order: flip, color_jitter, lighting, normalization, erasing, mixing.
    """

    flip: bool = False
    """Mirror each training image with probability one half."""
    mean: Rgb = IMAGENET_MEAN
    """Mean per channel, of images in [0, 1]; it is subtracted."""
    std: Rgb = IMAGENET_STD
    """Standard deviation per channel, of images in [0, 1]; images are divided by it."""
    pixel_mean: bool = False
    """Subtract the training split's mean image instead of `mean`, in training and scoring (He et al. 2015, 3.4)."""
    lighting: float = 0.0
    """Deviation of the noise along the principal components of colour; 0.1 in AlexNet; 0 = off."""
    color_jitter: float = 0.0
    """Jitter of brightness, contrast and saturation, each by a factor in [1 - x, 1 + x]; 0 = off."""
    mixup_alpha: float = 0.0
    """Mixup: an image's share comes from Beta(alpha, alpha) (Zhang et al. 2018); 0 = off."""
    cutmix_alpha: float = 0.0
    """CutMix: the area of the pasted box comes from Beta(alpha, alpha) (Yun et al. 2019); 0 = off."""
    mix_prob: float = 1.0
    """Chance that a batch is mixed at all."""
    cutmix_share: float = 0.5
    """Chance that a mixed batch has cutmix, where both are on."""
    erase_prob: float = 0.0
    """Chance that an image loses a random box (Zhong et al. 2020); 0 = off."""
    erase_area: tuple[float, float] = (0.02, 0.33)
    """Bounds of the box's share of the image."""
    erase_aspect: tuple[float, float] = (0.3, 3.3)
    """Bounds of the box's height over width."""
    erase_mode: EraseMode = "zero"
    """What takes the box's place in the normalized image: zeros, or a unit normal draw per value."""

    def __post_init__(self) -> None:
        rgb = 3
        require(len(self.mean) == rgb and all(map(math.isfinite, self.mean)), "augment.mean", "3 numbers", self.mean)
        require(
            len(self.std) == rgb and all(0 < value < math.inf for value in self.std),
            "augment.std",
            "3 positive numbers",
            self.std,
        )
        for name in ("lighting", "mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"augment.{name}", "finite, at least 0", value)
        for name in ("color_jitter", "mix_prob", "cutmix_share", "erase_prob"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"augment.{name}", "in [0, 1]", value)
        low, high = self.erase_area
        require(0 < low <= high <= 1, "augment.erase_area", "0 < low <= high <= 1", self.erase_area)
        low, high = self.erase_aspect
        require(0 < low <= high < math.inf, "augment.erase_aspect", "0 < low <= high", self.erase_aspect)
        require_choice("augment.erase_mode", self.erase_mode, EraseMode)

    @property
    def mixes(self) -> bool:
        """Whether a batch may be mixed."""
        return self.mix_prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)
