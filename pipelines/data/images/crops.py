"""Crops of encoded images: the fast path, and the choice between it and the exact path. Imports no torch.

A crop is a window of the image (`pipelines.data.images.crop_boxes`). The fast path decodes a JPEG once, and only the
region that contains all windows. It leaves unusual files to `open_rgb` of the exact path.

Legend: H, W height and width of the stored image; S side of the crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.config.crop import MAX_PIXELS, CropConfig, Interpolation
from pipelines.data.images.crop_boxes import Window, eval_window, train_window
from pipelines.data.images.display import Display, display_of_jpeg
from pipelines.data.images.jpeg import decode_region, read_header
from pipelines.data.images.pillow import (
    EncodedImage,
    decode_rgb,
    eval_crop,
    open_record,
    raw_pixels,
    resize_shorter,
    resized_size,
    train_crop,
)
from pipelines.data.images.resize import Pixels, resize
from pipelines.data.images.stored import Stored

IMAGE_FILE = Stored(form="original", size=0, quality=0, channels=3)
"""The stored form of an image file that belongs to no data set, with its pixels as stored."""
_REACH = {"bilinear": 1, "bicubic": 2}  # source pixels that a filter reads on each side when it does not shrink
_COLOURS = 3
Region = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""


def train_views(
    encoded: EncodedImage, stored: Stored, crop: CropConfig, streams: Sequence[np.random.Generator]
) -> list[Pixels]:
    """Return one random crop per stream, uint8 SxSx3 each. The device does the flips.

    Raises:
        DecodeError: not an image of the stored form.
    """
    if crop.decoder == "exact":
        image = open_record(encoded, stored)
        return [train_crop(image, crop, rng) for rng in streams]
    opened = _open(encoded, stored)
    return _crops_of(opened, [train_window(opened.width, opened.height, crop, rng) for rng in streams], crop)


def train_view(encoded: EncodedImage, stored: Stored, crop: CropConfig, rng: np.random.Generator) -> Pixels:
    """Return one random crop, uint8 SxSx3. Raises `DecodeError`."""
    return train_views(encoded, stored, crop, [rng])[0]


def eval_view(encoded: EncodedImage, stored: Stored, crop: CropConfig) -> Pixels:
    """Resize the shorter side, then cut out the centre, uint8 SxSx3. Pixels outside the image are zero.

    Raises:
        DecodeError: not an image of the stored form.
    """
    if crop.decoder == "exact":
        return eval_crop(open_record(encoded, stored), crop)
    opened = _open(encoded, stored)
    return _crops_of(opened, [eval_window(opened.width, opened.height, crop)], crop)[0]


def whole_views(encoded: EncodedImage, stored: Stored, crop: CropConfig, scales: Sequence[int]) -> list[Pixels]:
    """Return the whole image once per scale, with its shorter side at `scale` pixels: uint8 HxWx3 each.

    Raises:
        DecodeError: not an image of the stored form, or too long and thin for one of the scales.
    """
    if crop.decoder == "exact":
        image = open_record(encoded, stored)
        return [np.asarray(resize_shorter(image, scale, crop.interpolation)) for scale in scales]
    opened = _open(encoded, stored)
    size = opened.width, opened.height
    resized = [resized_size(*size, scale) for scale in scales]
    pixels = opened.region((0, 0, *size))
    return [_at_size(pixels, (0, 0, *size), each, crop.interpolation) for each in resized]


@dataclass(frozen=True, slots=True)
class _OpenImage:
    """An encoded image of known size, decoded when its pixels are needed."""

    width: int
    height: int
    region: Callable[[Region], Pixels]
    """Decodes a region: uint8 HWC with 1 or 3 channels."""


def _open(encoded: EncodedImage, stored: Stored) -> _OpenImage:
    header = None if stored.form == "raw" else read_header(encoded)
    if header is None or header.width * header.height > MAX_PIXELS:
        pixels = (
            raw_pixels(encoded, stored) if stored.form == "raw" else decode_rgb(encoded, displayed=stored.displayed)
        )
        return _OpenImage(pixels.shape[1], pixels.shape[0], lambda region: _part(pixels, region))
    display = display_of_jpeg(encoded) if stored.displayed else Display()

    def region(part: Region) -> Pixels:
        wanted = display.stored_region(part, header.width, header.height)
        decoded = decode_region(encoded, header, wanted)
        if decoded is None:
            return _part(decode_rgb(encoded, displayed=stored.displayed), part)
        return display.shown(decoded, grey=header.grey)

    return _OpenImage(*display.size(header.width, header.height), region)


def _part(pixels: Pixels, region: Region) -> Pixels:
    left, top, right, bottom = region
    return pixels[top:bottom, left:right]


@dataclass(frozen=True, slots=True)
class _Side:
    """A window along one side: the image's pixels that it needs, and the crop's pixels that they become."""

    begin: int
    """First pixel that the filter reads."""
    end: int
    """One past the last pixel that the filter reads."""
    start: float
    """Start of the window's part inside the image, in pixels from `begin`."""
    stop: float
    """End of that part, in pixels from `begin`."""
    first: int
    """First pixel of the crop that this part fills."""
    count: int
    """Number of pixels of the crop that it fills; the others are zero."""

    @classmethod
    def of(cls, side: Sequence[float], size: int, interpolation: Interpolation) -> _Side:
        """Convert one row of a window, (start, length, low, high), for a crop of `size` pixels."""
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


def _crops_of(opened: _OpenImage, windows: Sequence[Window], crop: CropConfig) -> list[Pixels]:
    size, interpolation = crop.image_size, crop.interpolation
    sides = [[_Side.of(side, size, interpolation) for side in window.tolist()] for window in windows]
    left, right = min(across.begin for across, _ in sides), max(across.end for across, _ in sides)
    top, bottom = min(down.begin for _, down in sides), max(down.end for _, down in sides)
    pixels = opened.region((left, top, right, bottom))
    results = []
    for across, down in sides:
        seen = pixels[down.begin - top : down.end - top, across.begin - left : across.end - left]
        results.append(_crop_of(seen, across, down, crop))
    return results


def _crop_of(seen: Pixels, across: _Side, down: _Side, crop: CropConfig) -> Pixels:
    """Resize the pixels that the filter reads, `seen`, and place them in the crop."""
    size, inside = crop.image_size, (across.count, down.count)
    if not min(inside):
        return np.zeros((size, size, _COLOURS), dtype=np.uint8)
    resized = _at_size(seen, (across.start, down.start, across.stop, down.stop), inside, crop.interpolation)
    if inside == (size, size):
        return resized
    result = np.zeros((size, size, _COLOURS), dtype=np.uint8)
    rows, columns = (slice(side.first, side.first + side.count) for side in (down, across))
    result[rows, columns] = resized
    return result


def _at_size(
    pixels: Pixels, box: tuple[float, float, float, float], size: tuple[int, int], interpolation: Interpolation
) -> Pixels:
    """Resize `box` of the pixels to `size` and return three channels."""
    if box != (0, 0, *size) or pixels.shape[1::-1] != size:
        pixels = resize(pixels, box, size, interpolation)
    return pixels if pixels.shape[2] == _COLOURS else np.broadcast_to(pixels, (*pixels.shape[:2], _COLOURS))
