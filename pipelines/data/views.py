"""From a stored record to the crops of it that a model sees: the fast path, and where the exact one is taken.

A view is a window of the image (`pipelines.data.windows`). Of a JPEG only the region that has all windows is decoded,
once for all of them. Files that are odd in any way are opened by the exact path's `open_rgb`. Imports no
torch.

Legend: H, W height and width of the stored image; S side of the crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.data.decode import (
    MAX_PIXELS,
    CropConfig,
    Interpolation,
    Record,
    decode_rgb,
    eval_crop,
    open_record,
    raw_pixels,
    resize_shorter,
    resized_size,
    train_crop,
)
from pipelines.data.jpeg import decode_region, read_header
from pipelines.data.manifest import Stored
from pipelines.data.resize import Pixels, resize
from pipelines.data.windows import Window, eval_window, train_window

IMAGE_FILE = Stored(form="original", size=0, quality=0, channels=3)
"""An image that is in no data set."""
_REACH = {"bilinear": 1, "bicubic": 2}  # source pixels that a filter sees to either side, where it does not shrink
_COLOURS = 3
Region = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""


def train_views(
    record: Record, stored: Stored, crop: CropConfig, streams: Sequence[np.random.Generator]
) -> list[Pixels]:
    """A random view from each stream, uint8 SxSx3; flips are left to the device.

    Raises:
        DecodeError: not an image of the stored form.
    """
    if crop.decoder == "exact":
        image = open_record(record, stored)
        return [train_crop(image, crop, rng) for rng in streams]
    picture = _open(record, stored)
    return _show(picture, [train_window(picture.width, picture.height, crop, rng) for rng in streams], crop)


def train_view(record: Record, stored: Stored, crop: CropConfig, rng: np.random.Generator) -> Pixels:
    """One random view, uint8 SxSx3. Raises `DecodeError`."""
    return train_views(record, stored, crop, [rng])[0]


def eval_view(record: Record, stored: Stored, crop: CropConfig) -> Pixels:
    """The shorter side resized, then the centre, zero-padded where the image is smaller: uint8 SxSx3.

    Raises:
        DecodeError: not an image of the stored form.
    """
    if crop.decoder == "exact":
        return eval_crop(open_record(record, stored), crop)
    picture = _open(record, stored)
    return _show(picture, [eval_window(picture.width, picture.height, crop)], crop)[0]


def whole_views(record: Record, stored: Stored, crop: CropConfig, scales: Sequence[int]) -> list[Pixels]:
    """The whole image with its shorter side at each of `scales` pixels, uint8 HxWx3 each.

    Raises:
        DecodeError: not an image of the stored form, or too long and thin for one of the scales.
    """
    if crop.decoder == "exact":
        image = open_record(record, stored)
        return [np.asarray(resize_shorter(image, scale, crop.interpolation)) for scale in scales]
    picture = _open(record, stored)
    size = picture.width, picture.height
    resized = [resized_size(*size, scale) for scale in scales]
    pixels = picture.region((0, 0, *size))
    return [_at_size(pixels, (0, 0, *size), each, crop.interpolation) for each in resized]


@dataclass(frozen=True, slots=True)
class _Picture:
    """A record whose size is known, and whose pixels are decoded when they are needed."""

    width: int
    height: int
    region: Callable[[Region], Pixels]
    """Part of it, uint8 HWC, of 1 or 3 channels."""


def _open(record: Record, stored: Stored) -> _Picture:
    header = None if stored.form == "raw" else read_header(record)
    if header is None or header.width * header.height > MAX_PIXELS:
        pixels = raw_pixels(record, stored) if stored.form == "raw" else decode_rgb(record)
        return _Picture(pixels.shape[1], pixels.shape[0], lambda region: _part(pixels, region))

    def region(part: Region) -> Pixels:
        decoded = decode_region(record, header, part)
        return _part(decode_rgb(record), part) if decoded is None else decoded

    return _Picture(header.width, header.height, region)


def _part(pixels: Pixels, region: Region) -> Pixels:
    left, top, right, bottom = region
    return pixels[top:bottom, left:right]


@dataclass(frozen=True, slots=True)
class _Side:
    """What a window needs along one side, in pixels of the image, and where in the view that goes."""

    begin: int
    """First pixel that the filter sees."""
    end: int
    """Last pixel that it sees, and one."""
    start: float
    """Where the part of the window that is inside the image starts, counted from `begin`."""
    stop: float
    first: int
    """Pixel of the view that it begins at."""
    count: int
    """Pixels of the view; the others are zero."""

    @classmethod
    def of(cls, side: Sequence[float], size: int, interpolation: Interpolation) -> _Side:
        """Of one row of a window, (start, length, low, high), for a view of `size` pixels."""
        start, length, low, high = side
        step = length / size
        first = max(0, math.ceil((low - start) / step - 0.5))  # pixels count by their centres
        last = min(size, math.floor((high - start) / step - 0.5) + 1)
        if last <= first:
            return cls(int(low), int(low) + 1, 0.0, 1.0, 0, 0)
        inside, until = max(low, start + first * step), min(high, start + last * step)
        exact = step == 1 and inside == int(inside)
        reach = 0 if exact else _REACH[interpolation] * max(step, 1)
        begin, end = max(int(low), math.floor(inside - reach)), min(int(high), math.ceil(until + reach))
        return cls(begin, end, inside - begin, until - begin, first, last - first)


def _show(picture: _Picture, windows: Sequence[Window], crop: CropConfig) -> list[Pixels]:
    size, interpolation = crop.image_size, crop.interpolation
    sides = [[_Side.of(side, size, interpolation) for side in window.tolist()] for window in windows]
    left, right = min(across.begin for across, _ in sides), max(across.end for across, _ in sides)
    top, bottom = min(down.begin for _, down in sides), max(down.end for _, down in sides)
    pixels = picture.region((left, top, right, bottom))
    views = []
    for across, down in sides:
        seen = pixels[down.begin - top : down.end - top, across.begin - left : across.end - left]
        views.append(_view(seen, across, down, crop))
    return views


def _view(seen: Pixels, across: _Side, down: _Side, crop: CropConfig) -> Pixels:
    """The view, of the pixels that the filter sees for it."""
    size, inside = crop.image_size, (across.count, down.count)
    if not min(inside):
        return np.zeros((size, size, _COLOURS), dtype=np.uint8)
    resized = _at_size(seen, (across.start, down.start, across.stop, down.stop), inside, crop.interpolation)
    if inside == (size, size):
        return resized
    view = np.zeros((size, size, _COLOURS), dtype=np.uint8)
    rows, columns = (slice(side.first, side.first + side.count) for side in (down, across))
    view[rows, columns] = resized
    return view


def _at_size(
    pixels: Pixels, box: tuple[float, float, float, float], size: tuple[int, int], interpolation: Interpolation
) -> Pixels:
    """`box` of the pixels in three colours."""
    if box != (0, 0, *size) or pixels.shape[1::-1] != size:
        pixels = resize(pixels, box, size, interpolation)
    return pixels if pixels.shape[2] == _COLOURS else np.broadcast_to(pixels, (*pixels.shape[:2], _COLOURS))
