"""Crop boxes: random boxes for training and the central box, computed from an image's width and height alone."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pipelines.config.crop import CropConfig

_ATTEMPTS = 10


def size_by_shorter(width: int, height: int, size: int) -> tuple[int, int]:
    """Scale (width, height) so that the shorter side is `size`; the longer side is rounded down as in torchvision."""
    short = min(width, height)
    return max(1, width * size // short), max(1, height * size // short)


def centred(length: int, size: int) -> int:
    """Return the offset of a centred window along one side, rounded as in torchvision.

    The offset is negative if the window is longer than the side.
    """
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


def centred_inside(length: int, size: int) -> tuple[int, int]:
    """Return (begin, end) of the part of a centred window that lies inside the image."""
    begin = max(0, centred(length, size))
    return begin, min(length, begin + size)


def random_box(width: int, height: int, crop: CropConfig, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of a random region, distributed as torchvision's RandomResizedCrop.

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
    """Return the largest central region whose width / height lies in `ratio`."""
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
    """Return (left, top, right, bottom), in pixels of the image, of a random crop of the randomly resized image.

    The shorter side of the resized image is uniform in [jitter_min, jitter_max]. The crop's corner is uniform over the
    resized image's pixels. Source: He et al. 2015, section 3.4.
    """
    least, most = (max(crop.image_size, each) for each in (crop.jitter_min, crop.jitter_max))
    shorter = int(rng.integers(least, most + 1))
    resized_width, resized_height = size_by_shorter(width, height, shorter)
    left = int(rng.integers(resized_width - crop.image_size + 1))
    top = int(rng.integers(resized_height - crop.image_size + 1))
    across, down = width / resized_width, height / resized_height
    return left * across, top * down, (left + crop.image_size) * across, (top + crop.image_size) * down


def padded_offset(length: int, crop: CropConfig, rng: np.random.Generator) -> int:
    """Return the crop's random offset along one side of the unpadded image.

    The crop is centred if even the padded side is shorter than `crop.image_size`.
    """
    slack = length + 2 * crop.pad - crop.image_size
    if slack < 0:
        return centred(length, crop.image_size)
    return int(rng.integers(slack + 1)) - crop.pad


Window = npt.NDArray[np.float64]
"""[2, 4]: for x, then y, (start, length, low, high) in pixels of the image. The crop is zero outside [low, high)."""


def train_window(width: int, height: int, crop: CropConfig, rng: np.random.Generator) -> Window:
    """Return the window that `train_crop` cuts from an image of this size, with the same draws from `rng`."""
    size = crop.image_size
    if crop.train_crop == "random_resized":
        left, top, right, bottom = random_box(width, height, crop, rng)
        return _window((left, right - left, left, right), (top, bottom - top, top, bottom))
    if crop.train_crop == "scale_jitter":
        x, y, right_x, bottom_y = jittered_box(width, height, crop, rng)
        return _window((x, right_x - x, 0, width), (y, bottom_y - y, 0, height))
    if crop.train_crop == "pad":
        x, y = padded_offset(width, crop, rng), padded_offset(height, crop, rng)
        return _window((x, size, 0, width), (y, size, 0, height))
    return eval_window(width, height, crop)


def eval_window(width: int, height: int, crop: CropConfig) -> Window:
    """Return the window that `eval_crop` cuts from an image of this size."""
    sides = zip((width, height), size_by_shorter(width, height, crop.eval_resize), strict=True)
    across, down = (
        (centred(resized, crop.image_size) * length / resized, crop.image_size * length / resized, 0, length)
        for length, resized in sides
    )
    return _window(across, down)


def _window(across: tuple[float, ...], down: tuple[float, ...]) -> Window:
    return np.array([across, down], dtype=np.float64)
