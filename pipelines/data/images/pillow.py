"""Decoding to RGB pixels, and crops for training and evaluation: the exact path. Imports Pillow and numpy only.

This is the reference implementation. `pipelines.data.images.crops` makes the same crops several times as fast; tests
compare the two.

Legend: H, W height and width of the stored image; S side of the crop. Images are Pillow images in mode RGB; results
are uint8 arrays HWC.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pipelines.config.crop import MAX_PIXELS, MEGAPIXEL, CropConfig, Interpolation
from pipelines.data.images.bit_depth import UnreadableSamples, shallow
from pipelines.data.images.crop_boxes import (
    centred,
    centred_inside,
    jittered_box,
    padded_offset,
    random_box,
    size_by_shorter,
)
from pipelines.data.images.display import as_shown, display_of_image
from pipelines.data.images.formats import identified, unread_jpeg, why_unreadable

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.data.images.stored import Stored

LARGE_PIXELS = 25 * MEGAPIXEL
"""A larger JPEG is decoded at reduced size if a smaller image is stored. No image is enlarged beyond this size."""
Image.MAX_IMAGE_PIXELS = None  # Pillow's guard only warns, at 89 megapixels; `open_rgb` refuses, and checks every file

EncodedImage = bytes | bytearray | memoryview
"""The stored bytes of one image."""
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class DecodeError(Exception):
    """The bytes are not an accepted image. The message is the reason, without the image's name."""


class OversizedImage(DecodeError):
    """An image exceeds the pixel limit, or would after resizing. No memory was allocated for its pixels."""


def open_rgb(
    data: EncodedImage, *, max_pixels: int = MAX_PIXELS, shorter: int = 0, displayed: bool = False
) -> Image.Image:
    """Decode to a Pillow image in mode RGB.

    CMYK, grey, palette and transparent images become RGB; alpha is dropped. More than 8 bits per sample become 8
    (`pipelines.data.images.bit_depth`). Only the first frame of an animation is read.

    Args:
        data: the bytes of the file.
        max_pixels: the most pixels that an image may have.
        shorter: pixels of the shorter side that are needed; 0 = all. A JPEG of more than `LARGE_PIXELS` is decoded at
            1/8, 1/4 or 1/2 of its size, and never below twice `shorter`.
        displayed: turn the image as its EXIF orientation says, and convert its colours to sRGB by its ICC profile
            (`pipelines.data.images.display`).

    Raises:
        DecodeError: not an image, truncated, or more than `max_pixels`.
    """
    try:
        image = identified(data)
        if image.width * image.height > max_pixels:
            raise OversizedImage(f"{image.width}x{image.height} is more than {max_pixels:,} pixels")
        if shorter and image.width * image.height > LARGE_PIXELS:
            least = size_by_shorter(image.width, image.height, 2 * shorter)
            image.draft(None, least)  # has no effect on formats other than JPEG
        return _to_rgb(image, data, displayed=displayed)
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(why_unreadable(data)) from None
    except UnreadableSamples as error:
        raise DecodeError(str(error)) from None
    except Exception as error:  # Pillow's plugins raise any exception on hostile bytes
        raise DecodeError(unread_jpeg(data) or f"{type(error).__name__}: {error}") from error


def decode_rgb(data: EncodedImage, *, displayed: bool = False) -> npt.NDArray[np.uint8]:
    """Decode to uint8 HWC. Raises `DecodeError`; see `open_rgb`."""
    return np.asarray(open_rgb(data, displayed=displayed))


def open_record(encoded: EncodedImage, stored: Stored) -> Image.Image:
    """Open an encoded image of a data set as a Pillow image in mode RGB.

    Raises:
        DecodeError: not an image of the stored form.
    """
    if stored.form != "raw":
        return open_rgb(encoded, displayed=stored.displayed)
    pixels = raw_pixels(encoded, stored)
    return Image.fromarray(pixels[:, :, 0] if stored.channels == 1 else pixels).convert("RGB")


def raw_pixels(encoded: EncodedImage, stored: Stored) -> npt.NDArray[np.uint8]:
    """Return the pixels of an image of form "raw": uint8 HWC, 1 or 3 channels, read-only. Raises `DecodeError`."""
    if len(encoded) != stored.size * stored.size * stored.channels:
        raise DecodeError(f"{len(encoded):,} bytes, expected {stored.size}x{stored.size}x{stored.channels}")
    return np.frombuffer(encoded, dtype=np.uint8).reshape(stored.size, stored.size, stored.channels)


def to_rgb(table: pa.Table, stored: Stored) -> list[npt.NDArray[np.uint8]]:
    """Decode the images of a table of rows, uint8 HWC each. Raises `DecodeError`."""
    return [np.asarray(open_record(encoded, stored)) for encoded in table["image"].to_pylist()]


def _to_rgb(image: Image.Image, data: EncodedImage, *, displayed: bool) -> Image.Image:
    found = shallow(image, data)
    pixels = image if found is None else found.image
    if pixels.mode == "P" and "transparency" in pixels.info:  # Pillow warns if such an image becomes RGB directly
        pixels = pixels.convert("RGBA")
    if not displayed:
        return pixels.convert("RGB")
    pixels.load()
    return as_shown(pixels, display_of_image(image, data))


def train_crop(image: Image.Image, crop: CropConfig, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return one random crop of `image`, uint8 SxSx3. The device does the flips."""
    if crop.train_crop == "random_resized":
        return _random_resized(image, crop, rng)
    if crop.train_crop == "scale_jitter":
        return _scale_jitter(image, crop, rng)
    if crop.train_crop == "pad":
        return _pad_crop(image, crop, rng)
    return eval_crop(image, crop)


def eval_crop(image: Image.Image, crop: CropConfig) -> npt.NDArray[np.uint8]:
    """Resize the shorter side, then cut out the centre, uint8 SxSx3. Pixels outside the image are zero."""
    return np.asarray(resized_center(image, crop.eval_resize, crop.image_size, crop.interpolation))


def resized_center(
    image: Image.Image, shorter: int, size: int, interpolation: Interpolation = "bilinear"
) -> Image.Image:
    """Resize the shorter side to `shorter` pixels and return the central size x size region.

    Only that region of a long, thin image is computed: a whole resized image of 10,000x1 pixels would take 2 GB.
    """
    width, height = size_by_shorter(image.width, image.height, shorter)
    if width * height <= max(LARGE_PIXELS, image.width * image.height):
        return center(resize_shorter(image, shorter, interpolation), size)
    left, right = centred_inside(width, size)
    top, bottom = centred_inside(height, size)
    across, down = image.width / width, image.height / height
    part = image.resize(
        (right - left, bottom - top),
        FILTERS[interpolation],
        box=(left * across, top * down, right * across, bottom * down),
    )
    return center(part, size)


def resize_shorter(image: Image.Image, size: int, interpolation: Interpolation = "bilinear") -> Image.Image:
    """Resize the shorter side to `size` pixels and the longer side in proportion, rounded down as in torchvision.

    Raises:
        OversizedImage: see `resized_size`.
    """
    if min(image.size) == size:
        return image
    return image.resize(resized_size(image.width, image.height, size), FILTERS[interpolation])


def resized_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Return (width, height) of an image whose shorter side is resized to `size` pixels.

    Raises:
        OversizedImage: a long, thin image would be enlarged to more than `LARGE_PIXELS`.
    """
    resized = size_by_shorter(width, height, size)
    if math.prod(resized) > max(LARGE_PIXELS, width * height):
        raise OversizedImage(
            f"{width}x{height} with its shorter side at {size} would be {resized[0]}x{resized[1]}, "
            f"more than {LARGE_PIXELS:,} pixels"
        )
    return resized


def center(image: Image.Image, size: int) -> Image.Image:
    """Return the central size x size region. Pixels outside the image are zero."""
    left, top = centred(image.width, size), centred(image.height, size)
    return image.crop((left, top, left + size, top + size))


def _random_resized(image: Image.Image, crop: CropConfig, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    # Crop, then resize, as torchvision does: the filter of resize(box=...) would read pixels outside the box.
    region = image.crop(random_box(image.width, image.height, crop, rng))
    return np.asarray(region.resize((crop.image_size, crop.image_size), FILTERS[crop.interpolation]))


def _scale_jitter(image: Image.Image, crop: CropConfig, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    # Only the crop of the resized image is computed. Its filter must read the pixels around the box: box= does that.
    box = jittered_box(image.width, image.height, crop, rng)
    return np.asarray(image.resize((crop.image_size, crop.image_size), FILTERS[crop.interpolation], box=box))


def _pad_crop(image: Image.Image, crop: CropConfig, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    left = padded_offset(image.width, crop, rng)
    top = padded_offset(image.height, crop, rng)
    return np.asarray(image.crop((left, top, left + crop.image_size, top + crop.image_size)))
