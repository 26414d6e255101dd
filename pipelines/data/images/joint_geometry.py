"""Geometry of an image together with its mask or its boxes: pure functions of a window. Imports numpy and Pillow only.

A window (`pipelines.data.images.crop_boxes`) says which part of an image fills an S x S canvas. Any of them carries
masks and boxes along: random resized crops, scale jitter, central crops (`train_window`, `eval_window`), and those made
here: large-scale jitter for training, and the whole image on the canvas for evaluation.

Legend: H, W height and width of the image; S side of the canvas; N boxes. A box is (x1, y1, x2, y2), the edges in
pixels: (0, 0, W, H) is the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from pipelines.config.crop import Interpolation
from pipelines.data.images.crop_boxes import Window
from pipelines.data.images.resize import Pixels, resize

IGNORED = 255
"""Value of a mask's pixel that has no class; the canvas has it outside the image."""
LARGE_SCALES = (0.1, 2.0)
"""Range of large-scale jitter, as in its paper and in torchvision."""
LEAST_SIDE = 1.0
"""Least width and height of a box on the canvas, pixels: that of torchvision's SanitizeBoundingBoxes."""
_GRID = 2**-20  # pixels: below the distance of two different centres, above the error of computing one

Mask = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float64]


def large_scale_jitter(
    width: int, height: int, size: int, rng: np.random.Generator, scales: tuple[float, float] = LARGE_SCALES
) -> Window:
    """Return the window of a random scale and place (Ghiasi et al. 2021, arXiv 2012.07177, Section 3).

    The image is resized to `scale` times the largest size that fits the canvas. A smaller image is at the canvas's
    upper left corner; of a larger one the canvas shows a random part. Distributed as torchvision's ScaleJitter followed
    by the FixedSizeCrop of its references, except that the offsets across and down are drawn independently.
    """
    scale = rng.uniform(*scales)
    resized = _resized(width, height, size, scale)
    left, top = (int(rng.integers(max(0, length - size) + 1)) for length in resized)
    return _placed((width, height), resized, size, (left, top))


def whole_image(width: int, height: int, size: int) -> Window:
    """Return the window of the whole image, as large as fits the canvas, at its upper left corner."""
    return _placed((width, height), _resized(width, height, size, 1.0), size, (0, 0))


def canvas_of(
    pixels: Pixels,
    window: Window,
    size: int,
    *,
    interpolation: Interpolation = "bilinear",
    fill: Sequence[int] = (0, 0, 0),
) -> Pixels:
    """Return the canvas, uint8 SxSx3; pixels outside the image have the colour `fill`.

    Args:
        pixels: the image, uint8 HxWx3.
        window: what fills the canvas.
        size: S.
        interpolation: filter of the resize, with antialiasing.
        fill: RGB.
    """
    canvas = np.empty((size, size, 3), dtype=np.uint8)
    canvas[:] = fill
    across, down = (_Part.of(side, size) for side in window)
    if not across.count or not down.count:
        return canvas
    seen = pixels[down.low : down.high, across.low : across.high]
    box = (across.start, down.start, across.stop, down.stop)
    rows, columns = (slice(each.first, each.first + each.count) for each in (down, across))
    canvas[rows, columns] = resize(seen, box, (across.count, down.count), interpolation)
    return canvas


def mask_canvas_of(mask: Mask, window: Window, size: int, *, fill: int = IGNORED) -> Mask:
    """Return the canvas of a mask, uint8 SxS: each pixel has the class of the image's pixel that its centre meets.

    This is Pillow's NEAREST, and torch's "nearest-exact". Pixels outside the image have the value `fill`.
    """
    canvas = np.full((size, size), fill, dtype=mask.dtype)
    across, down = (_inside(side, size) for side in window)
    columns, rows = (_nearest(side, size, places) for side, places in zip(window, (across, down), strict=True))
    canvas[np.ix_(down, across)] = mask[np.ix_(rows, columns)]
    return canvas


def boxes_on_canvas(boxes: Boxes, window: Window, size: int) -> tuple[Boxes, npt.NDArray[np.bool_]]:
    """Return the boxes on the canvas, float64 [kept, 4], and which of the N were kept.

    A box is clipped to the part of the canvas that shows the image, and kept if at least `LEAST_SIDE` pixels wide and
    high. torchvision's references have this rule (ClampBoundingBoxes, then SanitizeBoundingBoxes).
    """
    moved = (boxes.reshape(-1, 4) - _starts(window)) * _scales(window, size)
    shown = [(max(low, start), min(high, start + length)) for start, length, low, high in window.tolist()]
    limits = (np.array(shown).T.reshape(4) - _starts(window)) * _scales(window, size)
    clipped = np.clip(moved, np.tile(limits[:2], 2), np.tile(np.maximum(limits[2:], limits[:2]), 2))
    kept = np.all(clipped[:, 2:] - clipped[:, :2] >= LEAST_SIDE, axis=1)
    return clipped[kept], kept


def boxes_in_image(boxes: Boxes, window: Window, size: int) -> Boxes:
    """Return boxes of the canvas in pixels of the image, clipped to it: for detections on `whole_image`."""
    moved = boxes.reshape(-1, 4) / _scales(window, size) + _starts(window)
    return np.clip(moved, np.tile(window[:, 2], 2), np.tile(window[:, 3], 2))


def flipped(canvas: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return a canvas, of an image or a mask, mirrored from left to right."""
    return canvas[:, ::-1]


def flipped_boxes(boxes: Boxes, size: int) -> Boxes:
    """Return the boxes of a canvas that is mirrored from left to right."""
    x1, y1, x2, y2 = boxes.reshape(-1, 4).T
    return np.stack([size - x2, y1, size - x1, y2], axis=1)


def _resized(width: int, height: int, size: int, scale: float) -> tuple[int, int]:
    """Return (width, height), rounded down as in torchvision, at least 1.

    The exact fraction keeps the longer side at S for a scale of 1, where a product of floats may round below it.
    """
    ratio = Fraction(size, max(width, height)) * Fraction(scale)
    return max(1, int(width * ratio)), max(1, int(height * ratio))


def _placed(image: tuple[int, int], resized: tuple[int, int], size: int, corner: tuple[int, int]) -> Window:
    """Return the window of a canvas whose corner is at a pixel of the resized image."""
    return np.array(
        [
            (offset * length / new, size * length / new, 0, length)
            for length, new, offset in zip(image, resized, corner, strict=True)
        ],
        dtype=np.float64,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """Part of a canvas that shows the image, along one side, and the pixels of the image that it shows."""

    first: int
    """First pixel of the canvas."""
    count: int
    low: int
    """First pixel of the image that the filter may read."""
    high: int
    start: float
    """Start of what is shown, in pixels from `low`."""
    stop: float

    @classmethod
    def of(cls, side: npt.NDArray[np.float64], size: int) -> _Part:
        start, length, low, high = side.tolist()
        places = _inside(side, size)
        first, step = int(places[0]) if len(places) else 0, length / size
        ends = (min(max(start + place * step, low), high) - low for place in (first, first + len(places)))
        return cls(first, len(places), int(low), int(high), *ends)


def _centres(side: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Return the centres of the canvas's pixels, in pixels of the image."""
    start, length, _, _ = side.tolist()
    return np.asarray(start + (np.arange(size) + 0.5) * (length / size), dtype=np.float64)


def _inside(side: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.int64]:
    """Return the pixels of the canvas, along one side, whose centres lie in the image."""
    centres = _centres(side, size) + _GRID
    return np.flatnonzero((side[2] <= centres) & (centres < side[3]))


def _nearest(side: npt.NDArray[np.float64], size: int, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the image's pixel that contains the centre of each of these pixels of the canvas."""
    return np.floor(_centres(side, size)[places] + _GRID).astype(np.int64)


def _starts(window: Window) -> npt.NDArray[np.float64]:
    return np.tile(window[:, 0], 2)


def _scales(window: Window, size: int) -> npt.NDArray[np.float64]:
    return np.tile(size / window[:, 1], 2)
