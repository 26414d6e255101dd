"""Part of an array of pixels at another size: Pillow's filters, at most one level of 255 from them, and faster.

By the vector instructions of the Rust crate fast_image_resize (package cykooz-resizer); on processors that it has no
wheel for, by Pillow itself.
"""

from __future__ import annotations

import functools
import threading

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.data.decode import FILTERS, Interpolation

try:
    import cykooz_resizer as vectors
except ImportError:  # no wheel for this processor
    vectors = None

_GRID = 2**20  # parts of a pixel that a box is given in, so that no sum of its numbers is rounded past an edge

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


def resize(pixels: Pixels, box: Box, size: tuple[int, int], interpolation: Interpolation) -> Pixels:
    """`box` of an image at `size` = (width, height); the filter sees all of the image, widened where it shrinks.

    Args:
        pixels: uint8 HWC, of 1 or 3 channels.

    Returns:
        uint8 HWC of as many channels, which nobody may write to.
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
    """A resizer keeps buffers between calls: each thread has its own."""

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
