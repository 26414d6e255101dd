"""Section `augment` of a recipe: image transforms on the device."""

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
    """Transforms of uint8 images on the device, after the data tasks have cropped them and applied their policy.

    The order is flip, color_jitter, lighting, normalization, erasing, mixing.
    """

    flip: bool = False
    """Mirror each training image with probability 0.5."""
    mean: Rgb = IMAGENET_MEAN
    """Mean of each channel, which is subtracted; images are in [0, 1]."""
    std: Rgb = IMAGENET_STD
    """Standard deviation of each channel, by which images are divided; images are in [0, 1]."""
    pixel_mean: bool = False
    """Subtract the training split's mean image instead of `mean`, in training and evaluation (He et al. 2015, 3.4)."""
    lighting: float = 0.0
    """Standard deviation of noise along the principal components of colour; 0.1 in AlexNet; 0 = off."""
    color_jitter: float = 0.0
    """Jitter x: brightness, contrast and saturation each change by a factor in [1 - x, 1 + x]; 0 = off."""
    mixup_alpha: float = 0.0
    """Alpha of mixup: the weight of an image is drawn from Beta(alpha, alpha) (Zhang et al. 2018); 0 = off."""
    cutmix_alpha: float = 0.0
    """Alpha of CutMix: the area of the pasted box is drawn from Beta(alpha, alpha) (Yun et al. 2019); 0 = off."""
    mix_prob: float = 1.0
    """Probability that a batch is mixed at all."""
    cutmix_share: float = 0.5
    """Probability that a mixed batch uses CutMix instead of mixup, if both are on."""
    erase_prob: float = 0.0
    """Probability that a random box of an image is erased (Zhong et al. 2020); 0 = off."""
    erase_area: tuple[float, float] = (0.02, 0.33)
    """Bounds of the erased box's area, as a fraction of the image's."""
    erase_aspect: tuple[float, float] = (0.3, 3.3)
    """Bounds of the erased box's aspect ratio, height / width."""
    erase_mode: EraseMode = "zero"
    """Values that fill the erased box of the normalized image: zero, or noise = a standard normal draw per value."""

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
        """True if batches may be mixed."""
        return self.mix_prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)
