"""Encoded bytes to RGB pixels, and the crops of training and evaluation. Pillow and numpy only.

This is the reference: `pipelines.data.views` makes the same crops several times as fast, and is held to it by tests.

Legend: H, W height and width of the stored image; S side of the crop. Pictures are Pillow images in mode RGB, results
uint8 arrays HWC.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pipelines.data.boxes import centred, centred_inside, jittered_box, padded_offset, random_box, size_by_shorter
from pipelines.data.depth import UnreadableSamples, shallow
from pipelines.data.formats import identified, told, unread_jpeg

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.data.manifest import Stored

MEGAPIXEL = 1_000_000
MAX_PIXELS = 100 * MEGAPIXEL
"""Checked on the header alone: a small file with a forged header would otherwise decode to gigabytes.

Pillow takes 4 bytes a pixel and the array of the pixels 3 more, 0.7 GB at the limit.
"""
LARGE_PIXELS = 25 * MEGAPIXEL
"""A JPEG of more is decoded at reduced size where a smaller image is stored; no image is enlarged to more."""
Image.MAX_IMAGE_PIXELS = None  # Pillow's own guard warns at 89 megapixels; ours refuses, and is checked on every file

Record = bytes | bytearray | memoryview
"""The stored bytes of one image."""
Interpolation = Literal["bilinear", "bicubic"]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
Decoder = Literal["fast", "exact"]
TrainCrop = Literal["random_resized", "scale_jitter", "pad", "center"]
Policy = Literal["", "trivial_augment_wide", "rand_augment", "three_augment"]
SHOWN = ("image_size", "eval_resize", "interpolation", "decoder")
"""Fields of `CropConfig` that decide what evaluation shows a model."""
MOST_MAGNITUDE = 10
"""Upper end of RandAugment's scale, as timm has it."""


class DecodeError(Exception):
    """These bytes are no image that we accept; the message is the reason, without the image's name."""


class OversizedImage(DecodeError):
    """An image has more pixels than the limit, or would have after resizing; the memory for them was not taken."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CropConfig:
    """How a stored image becomes S x S inputs: crop, policy, and how many of them."""

    image_size: int = 224
    """Side of the images that the network sees, pixels."""
    decoder: Decoder = "fast"
    """Image decoder: fast = at most two levels of 255 from exact; exact = Pillow throughout, to the bit."""
    interpolation: Interpolation = "bilinear"
    """Filter of every resize, always with antialiasing."""
    train_crop: TrainCrop = "random_resized"
    """Training crop. random_resized: random region, resized (Inception). scale_jitter: resized at random, then random
    crop (He et al. 2015, 3.4). pad: zero-pad, then random crop (CIFAR). center: as in evaluation."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Region's share of the image's area, [low, high], for random_resized."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Region's width over height, [low, high], for random_resized."""
    jitter_min: int = 256
    """Least pixels of the resized shorter side, for scale_jitter; never below image_size."""
    jitter_max: int = 480
    """Most pixels of the resized shorter side, for scale_jitter."""
    pad: int = 4
    """Zero pixels on each side, for the crop "pad"."""
    eval_resize: int = 256
    """Shorter side before the centre crop, pixels; in evaluation, and for the crop "center"."""
    policy: Policy = ""
    """Random changes of each training crop; "" = none."""
    policy_ops: int = 2
    """Operations drawn per image, for rand_augment; each is applied with probability one half."""
    policy_magnitude: float = 9.0
    """Strength of the operations in [0, 10], as timm counts it, for rand_augment."""
    policy_magnitude_std: float = 0.0
    """Deviation of the strength, drawn anew for each operation, for rand_augment."""
    policy_increasing: bool = False
    """Let every operation grow with the strength, for rand_augment; else some shrink, as first published."""
    repeats: int = 1
    """Views of a training sample that share a step, each with its own crop and policy (Hoffer et al. 2020)."""

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
        """The fields of `SHOWN`."""
        return {name: getattr(self, name) for name in SHOWN}

    @classmethod
    def of_shown(cls, kept: Mapping[str, Any]) -> CropConfig:
        """Of what a registered model keeps of `shown`; its other keys are ignored."""
        return cls(**{name: kept[name] for name in SHOWN if name in kept})

    def at(self, size: int) -> CropConfig:
        """The same crop at another S, lengths in proportion: a curriculum's phase."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(CropConfig)}
        lengths = ("eval_resize", "jitter_min", "jitter_max")
        scaled = {name: round(fields[name] * size / self.image_size) for name in lengths}
        return CropConfig(**{**fields, **scaled, "image_size": size})


def open_rgb(data: Record, *, max_pixels: int = MAX_PIXELS, shorter: int = 0) -> Image.Image:
    """Decode to a Pillow image in mode RGB.

    CMYK, grey, palette and transparent images become RGB (alpha is dropped); more than 8 bits a sample become 8
    (`pipelines.data.depth`); an EXIF rotation is not applied, as in torchvision's loader; of an animation the first
    frame counts.

    Args:
        data: the file.
        max_pixels: the most that an image may have.
        shorter: pixels of the shorter side that are needed; 0 = all. A JPEG of more than `LARGE_PIXELS` is decoded at
            an eighth, a quarter or half of its size, and never below twice `shorter`.

    Raises:
        DecodeError: not an image, truncated, or more than `max_pixels`.
    """
    try:
        image = identified(data)
        if image.width * image.height > max_pixels:
            raise OversizedImage(f"{image.width}x{image.height} is more than {max_pixels:,} pixels")
        if shorter and image.width * image.height > LARGE_PIXELS:
            least = size_by_shorter(image.width, image.height, 2 * shorter)
            image.draft(None, least)  # of formats, a JPEG alone can do this
        return _to_rgb(image, data)
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(told(data)) from None
    except UnreadableSamples as error:
        raise DecodeError(str(error)) from None
    except Exception as error:  # Pillow's plugins raise what they like on hostile bytes
        raise DecodeError(unread_jpeg(data) or f"{type(error).__name__}: {error}") from error


def decode_rgb(data: Record) -> npt.NDArray[np.uint8]:
    """Decode to uint8 HWC. Raises `DecodeError`; see `open_rgb`."""
    return np.asarray(open_rgb(data))


def open_record(record: Record, stored: Stored) -> Image.Image:
    """The stored bytes of one image as a Pillow image in mode RGB.

    Raises:
        DecodeError: not an image of the stored form.
    """
    if stored.form != "raw":
        return open_rgb(record)
    pixels = raw_pixels(record, stored)
    return Image.fromarray(pixels[:, :, 0] if stored.channels == 1 else pixels).convert("RGB")


def raw_pixels(record: Record, stored: Stored) -> npt.NDArray[np.uint8]:
    """The pixels of form "raw", uint8 HWC of 1 or 3 channels, read-only. Raises `DecodeError`."""
    if len(record) != stored.size * stored.size * stored.channels:
        raise DecodeError(f"{len(record):,} bytes, expected {stored.size}x{stored.size}x{stored.channels}")
    return np.frombuffer(record, dtype=np.uint8).reshape(stored.size, stored.size, stored.channels)


def to_rgb(table: pa.Table, stored: Stored) -> list[npt.NDArray[np.uint8]]:
    """The images of a table of rows, uint8 HWC each. Raises `DecodeError`."""
    return [np.asarray(open_record(record, stored)) for record in table["image"].to_pylist()]


def _to_rgb(image: Image.Image, data: Record) -> Image.Image:
    found = shallow(image, data)
    if found is not None:
        return found.image.convert("RGB")
    if image.mode == "P" and "transparency" in image.info:  # straight to RGB warns
        image = image.convert("RGBA")
    return image.convert("RGB")


def train_crop(image: Image.Image, crop: CropConfig, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """One random view of `image`, uint8 SxSx3; flips are left to the device."""
    if crop.train_crop == "random_resized":
        return _random_resized(image, crop, rng)
    if crop.train_crop == "scale_jitter":
        return _scale_jitter(image, crop, rng)
    if crop.train_crop == "pad":
        return _pad_crop(image, crop, rng)
    return eval_crop(image, crop)


def eval_crop(image: Image.Image, crop: CropConfig) -> npt.NDArray[np.uint8]:
    """Resize the shorter side, then the centre, zero-padded where the image is smaller: uint8 SxSx3."""
    return np.asarray(resized_center(image, crop.eval_resize, crop.image_size, crop.interpolation))


def resized_center(
    image: Image.Image, shorter: int, size: int, interpolation: Interpolation = "bilinear"
) -> Image.Image:
    """The central size x size region of the image whose shorter side is resized to `shorter` pixels.

    Of a long, thin image only that region is computed: of 10,000x1 pixels the whole would take 2 GB.
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
    """The shorter side to `size` pixels, the longer one in proportion, rounded down as in torchvision.

    Raises:
        OversizedImage: see `resized_size`.
    """
    if min(image.size) == size:
        return image
    return image.resize(resized_size(image.width, image.height, size), FILTERS[interpolation])


def resized_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of an image whose shorter side is resized to `size` pixels.

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
    """The central size x size region; zeros outside the image."""
    left, top = centred(image.width, size), centred(image.height, size)
    return image.crop((left, top, left + size, top + size))


def _random_resized(image: Image.Image, crop: CropConfig, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    # Cropped, then resized, as torchvision does: the filter of resize(box=...) would see pixels outside the box.
    region = image.crop(random_box(image.width, image.height, crop, rng))
    return np.asarray(region.resize((crop.image_size, crop.image_size), FILTERS[crop.interpolation]))


def _scale_jitter(image: Image.Image, crop: CropConfig, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    # The crop of the resized image, of which nothing else is computed: here the filter has to see what is around it.
    box = jittered_box(image.width, image.height, crop, rng)
    return np.asarray(image.resize((crop.image_size, crop.image_size), FILTERS[crop.interpolation], box=box))


def _pad_crop(image: Image.Image, crop: CropConfig, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    left = padded_offset(image.width, crop, rng)
    top = padded_offset(image.height, crop, rng)
    return np.asarray(image.crop((left, top, left + crop.image_size, top + crop.image_size)))


def _require_choice(field: str, value: str, choices: object) -> None:
    names = get_args(choices)
    _require(value in names, field, f"must be one of {', '.join(filter(None, names))}", value)


def _require(condition: bool, field: str, what: str, value: object) -> None:
    if not condition:
        raise ValueError(f"data.{field} {what}, got {value!r}")
