"""Which part of an image a crop is, from its width and height alone: the random draws of training, and the centre."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipelines.data.decode import CropConfig

_ATTEMPTS = 10


def size_by_shorter(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with the shorter of them at `size`, the longer one rounded down as in torchvision."""
    short = min(width, height)
    return max(1, width * size // short), max(1, height * size // short)


def centred(length: int, size: int) -> int:
    """Offset of a centred window along one side, negative where the window is longer; rounded as in torchvision."""
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


def centred_inside(length: int, size: int) -> tuple[int, int]:
    """Begin and end of the part of a centred window that is inside the image."""
    begin = max(0, centred(length, size))
    return begin, min(length, begin + size)


def random_box(width: int, height: int, crop: CropConfig, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random region; the distribution is that of torchvision's RandomResizedCrop.

    Source: Szegedy et al. 2015 (Going deeper with convolutions), section 6.
    """
    log_ratio = (math.log(crop.ratio[0]), math.log(crop.ratio[1]))
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*crop.scale)
        ratio = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    return _largest_box(width, height, crop.ratio)


def _largest_box(width: int, height: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest central region whose width over height is in `ratio`."""
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def jittered_box(
    width: int, height: int, crop: CropConfig, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom), in the pixels of an image, of a random crop of the image resized at random.

    The shorter side of the resized image is uniform in [jitter_min, jitter_max], and the crop begins at any of its
    pixels. Source: He et al. 2015, section 3.4.
    """
    least, most = (max(crop.image_size, each) for each in (crop.jitter_min, crop.jitter_max))
    shorter = int(rng.integers(least, most + 1))
    resized_width, resized_height = size_by_shorter(width, height, shorter)
    left = int(rng.integers(resized_width - crop.image_size + 1))
    top = int(rng.integers(resized_height - crop.image_size + 1))
    across, down = width / resized_width, height / resized_height
    return left * across, top * down, (left + crop.image_size) * across, (top + crop.image_size) * down


def padded_offset(length: int, crop: CropConfig, rng: np.random.Generator) -> int:
    """Offset of the crop along one side of the unpadded image; centred where even the padded side is shorter than S."""
    slack = length + 2 * crop.pad - crop.image_size
    if slack < 0:
        return centred(length, crop.image_size)
    return int(rng.integers(slack + 1)) - crop.pad
