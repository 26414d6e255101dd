"""The crops of training and evaluation as numbers: what the device needs to make them, drawn as the host draws them.

A window is float64 [2, 4]: across and down, each (start, length, low, high) in pixels of the stored image; see
`resnet_core.resample`, which this agrees with and does not import.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.data.boxes import centred, jittered_box, padded_offset, random_box, size_by_shorter
from pipelines.data.decode import CropConfig

Window = npt.NDArray[np.float64]


def train_window(width: int, height: int, crop: CropConfig, rng: np.random.Generator) -> Window:
    """What `train_crop` would make of an image of this size; the same draws from `rng`."""
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
    """What `eval_crop` would make of an image of this size."""
    sides = zip((width, height), size_by_shorter(width, height, crop.eval_resize), strict=True)
    across, down = (
        (centred(resized, crop.image_size) * length / resized, crop.image_size * length / resized, 0, length)
        for length, resized in sides
    )
    return _window(across, down)


def _window(across: tuple[float, ...], down: tuple[float, ...]) -> Window:
    return np.array([across, down], dtype=np.float64)
