"""Part of a recipe's section `data` that concerns one image: how a stored image becomes an input of the network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

DecodeOn = Literal["host", "device"]
"""Where a record becomes a training image: in a data task on the host, or on a worker's device."""
MEGAPIXEL = 1_000_000
MAX_PIXELS = 100 * MEGAPIXEL
"""Largest image that is decoded, checked on the header alone: a small file with a forged header could take gigabytes.

Pillow needs 4 bytes per pixel and the pixel array 3 more: 0.7 GB at the limit.
"""


Interpolation = Literal["bilinear", "bicubic"]
Decoder = Literal["fast", "exact"]
TrainCrop = Literal["random_resized", "scale_jitter", "pad", "center"]
Policy = Literal["", "trivial_augment_wide", "rand_augment", "three_augment"]
SHOWN = ("image_size", "eval_resize", "interpolation", "decoder")
"""Fields of `CropConfig` that decide which pixels a model gets in evaluation."""
MOST_MAGNITUDE = 10
"""Upper end of RandAugment's scale, as in timm."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CropConfig:
    """Crop, policy and number of the S x S inputs that a stored image becomes."""

    image_size: int = 224
    """Side of the network's input images, pixels."""
    decoder: Decoder = "fast"
    """Image decoder; fast = at most 2 of 255 levels from exact; exact = Pillow throughout, bit for bit."""
    interpolation: Interpolation = "bilinear"
    """Filter of every resize, always with antialiasing."""
    train_crop: TrainCrop = "random_resized"
    """Training crop. random_resized: random region, resized (Inception). scale_jitter: random resize, then random crop
    (He et al. 2015, 3.4). pad: zero-pad, then random crop (CIFAR). center: as in evaluation."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of the region as a share of the image, [low, high], for random_resized."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the region, [low, high], for random_resized."""
    jitter_min: int = 256
    """Smallest resized shorter side, pixels, for scale_jitter; never below image_size."""
    jitter_max: int = 480
    """Largest resized shorter side, pixels, for scale_jitter."""
    pad: int = 4
    """Zero pixels added on each side, for train_crop = "pad"."""
    eval_resize: int = 256
    """Shorter side before the centre crop, pixels; in evaluation, and for train_crop = "center"."""
    policy: Policy = ""
    """Random augmentation of each training crop; "" = none."""
    policy_ops: int = 2
    """Operations drawn per image, for rand_augment; each is applied with probability 0.5."""
    policy_magnitude: float = 9.0
    """Strength of the operations in [0, 10], on timm's scale, for rand_augment."""
    policy_magnitude_std: float = 0.0
    """Standard deviation of the strength, drawn anew for each operation, for rand_augment."""
    policy_increasing: bool = False
    """Make every operation grow with the strength, for rand_augment; false = some get weaker, as first published."""
    repeats: int = 1
    """Crops of each training sample in one step, each with its own policy draw (Hoffer et al. 2020)."""

    def __post_init__(self) -> None:
        _require(self.image_size >= 1, "image_size", "must be at least 1", self.image_size)
        _require(self.eval_resize >= 1, "eval_resize", "must be at least 1", self.eval_resize)
        _require(self.pad >= 0, "pad", "must be at least 0", self.pad)
        _require_choice("decoder", self.decoder, Decoder)
        _require_choice("interpolation", self.interpolation, Interpolation)
        _require_choice("train_crop", self.train_crop, TrainCrop)
        _require(0 < self.scale[0] <= self.scale[1] <= 1, "scale", "must be 0 < low <= high <= 1", self.scale)
        _require(0 < self.ratio[0] <= self.ratio[1], "ratio", "must be 0 < low <= high", self.ratio)
        _require(self.jitter_min <= self.jitter_max, "jitter_max", "must be at least data.jitter_min", self.jitter_max)
        _require_choice("policy", self.policy, Policy)
        _require(self.policy_ops >= 1, "policy_ops", "must be at least 1", self.policy_ops)
        within = 0 <= self.policy_magnitude <= MOST_MAGNITUDE
        _require(within, "policy_magnitude", f"must be in [0, {MOST_MAGNITUDE}]", self.policy_magnitude)
        spread = self.policy_magnitude_std
        _require(0 <= spread < math.inf, "policy_magnitude_std", "must be finite, at least 0", spread)
        _require(self.repeats >= 1, "repeats", "must be at least 1", self.repeats)

    @property
    def shown(self) -> dict[str, int | str]:
        """Return the fields of `SHOWN`."""
        return {name: getattr(self, name) for name in SHOWN}

    @classmethod
    def of_shown(cls, kept: Mapping[str, Any]) -> CropConfig:
        """Return the crop that a registered model has stored; keys of `kept` other than `SHOWN` are ignored."""
        return cls(**{name: kept[name] for name in SHOWN if name in kept})

    def at(self, size: int) -> CropConfig:
        """Return the same crop at another S, lengths in proportion, for a phase of a curriculum."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(CropConfig)}
        lengths = ("eval_resize", "jitter_min", "jitter_max")
        scaled = {name: round(fields[name] * size / self.image_size) for name in lengths}
        return CropConfig(**{**fields, **scaled, "image_size": size})


def _require_choice(field: str, value: str, choices: object) -> None:
    names = get_args(choices)
    _require(value in names, field, f"must be one of {', '.join(filter(None, names))}", value)


def _require(condition: bool, field: str, what: str, value: object) -> None:
    if not condition:
        raise ValueError(f"data.{field} {what}, got {value!r}")
