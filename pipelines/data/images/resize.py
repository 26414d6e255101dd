"""Fast resizing of part of an array of pixels, by Pillow's filters. Results differ from Pillow by at most 1 of 255.

The Rust crate fast_image_resize (package cykooz-resizer) does it with vector instructions. On processors without a
wheel of that package, Pillow does it.
"""

from __future__ import annotations

import functools
import threading

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.config.crop import Interpolation
from pipelines.data.images.pillow import FILTERS

try:
    import cykooz_resizer as vectors
except ImportError:  # no wheel for this processor
    vectors = None

_GRID = 2**20  # a box is rounded to 1/_GRID pixels, so that rounding of a sum never puts it outside the image

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


def resize(pixels: Pixels, box: Box, size: tuple[int, int], interpolation: Interpolation) -> Pixels:
    """Resize `box` of an image to `size` = (width, height).

    The filter may read pixels outside the box. It is widened when the image shrinks.

    Args:
        pixels: uint8 HWC, 1 or 3 channels.

    Returns:
        uint8 HWC with the same number of channels, read-only.
    """
    if vectors is None:
        return _by_pillow(pixels, box, size, interpolation)
    height, width, channels = pixels.shape
    kind = vectors.PixelType.U8 if channels == 1 else vectors.PixelType.U8x3
    source = vectors.ImageData(width, height, kind, pixels.tobytes())
    result = vectors.ImageData(*size, kind)
    whole = _whole(interpolation)
    _own.resizer.resize(source, result, whole if box == (0, 0, width, height) else _part(whole, box))
    return np.frombuffer(result.get_buffer(), dtype=np.uint8).reshape(size[1], size[0], channels)


class _Own(threading.local):
    """One resizer per thread: a resizer keeps buffers between calls."""

    @functools.cached_property
    def resizer(self) -> vectors.Resizer:
        return vectors.Resizer()


_own = _Own()


@functools.cache
def _whole(interpolation: Interpolation) -> vectors.ResizeOptions:
    kind = vectors.FilterType.bilinear if interpolation == "bilinear" else vectors.FilterType.catmull_rom
    return vectors.ResizeOptions(resize_alg=vectors.ResizeAlg.convolution(kind), use_alpha=False)


def _part(whole: vectors.ResizeOptions, box: Box) -> vectors.ResizeOptions:
    left, top, right, bottom = (round(each * _GRID) / _GRID for each in box)
    part = whole.copy()
    part.crop_box = vectors.CropBox(left, top, right - left, bottom - top)
    return part


def _by_pillow(pixels: Pixels, box: Box, size: tuple[int, int], interpolation: Interpolation) -> Pixels:
    grey = pixels.shape[2] == 1
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if grey else pixels))
    resized = np.asarray(image.resize(size, FILTERS[interpolation], box=box))
    return resized[:, :, None] if grey else resized
