"""Conversion of images with more than 8 bits per sample to 8 bits. Imports Pillow and numpy only.

The container does not say how bright a sample is: cameras, scanners and thermal sensors store 10, 12 or 14 bits in
16-bit files. The range is therefore the smallest of `RANGES` that holds the image's largest sample. The upper 8 bits
of that range are kept. Floating point is read as 0..1 or as 0..255. Samples that fit no range are refused.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from pipelines.data.images.formats import FORMATS, Data

RANGES = (8, 10, 12, 14, 16)
"""Bits per sample that an image may use."""
_DEEP = 16
_BRIGHTEST = 255
_LEAST_BRIGHTEST = 16
"""Floating point: a largest sample between 1 and this value does not say whether the range is 0..1 or 0..255."""
_BITS, _PHOTOMETRIC, _LARGEST, _PLANES, _LARGEST_SIGNED = 258, 262, 281, 284, 341  # TIFF tags
_WHITE_IS_ZERO, _SEPARATE = 0, 2
_SWAPPED = {
    f"{mode};16{order}": f"{mode};16{other}" for mode in ("RGB", "RGBA", "RGBX") for order, other in ("LB", "BL")
} | {f"{mode};16N": f"{mode};16{'B' if sys.byteorder == 'little' else 'L'}" for mode in ("RGB", "RGBA", "RGBX")}
"""Raw modes with the opposite byte order. Pillow keeps one byte of each colour sample: here, the lower byte."""
_HIGH_BYTE_OF_14_BITS = 64
"""Largest upper byte of a 14-bit sample, rounded up."""
_UNSIGNED_32 = "I;32N"
_GREY_ALPHA, _FOUR_BYTES = "LA;16B", "RGBA"


class UnreadableSamples(ValueError):
    """The samples fit none of the ranges. The message is the reason."""


@dataclass(frozen=True, slots=True)
class Shallow:
    """An 8-bit image converted from a deeper one."""

    image: Image.Image  # mode L or RGB
    kind: str  # the kind that the report of prepare counts it as


def is_deep(image: Image.Image) -> bool:
    """Return whether an opened, not yet loaded file has more than 8 bits per sample."""
    deep_mode = image.mode == "F" or image.mode.startswith("I")
    return deep_mode or ";16" in _rawmode(image) or _in_planes(image) or _largest_in_header(image) > _BRIGHTEST


def shallow(image: Image.Image, data: Data) -> Shallow | None:
    """Convert the image to 8 bits. Return None if the file has at most 8 bits per sample.

    Args:
        image: the opened file, not yet loaded.
        data: the bytes of the file.

    Raises:
        UnreadableSamples: the samples fit none of the ranges.
    """
    if not is_deep(image):
        return None
    if image.mode == "F":
        return Shallow(_float(image), "float")
    if image.mode.startswith("I"):
        return _grey(image)
    if _in_planes(image):  # Pillow would read such samples as if they had 8 bits
        raise UnreadableSamples(
            "a TIFF with 16 bits a sample in separate planes is not read here: convert it to 8 bits"
        )
    return _colour(image, data, _rawmode(image))


def _grey(image: Image.Image) -> Shallow:
    raw, container = _rawmode(image), 32 if image.mode == "I" else _DEEP
    known = 0
    if image.format == "PPM":
        container = _DEEP
        if _tiles(image)[0].codec_name != "raw":  # Pillow has scaled the samples by the header's maximum
            known = _DEEP
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        known = min(_declared(image), _DEEP)
        container = _DEEP if ";16" in raw else container
        container = 12 if ";12" in raw else container
    white_is_zero = _white_is_zero(image)
    samples = np.asarray(image)
    if raw == _UNSIGNED_32:  # Pillow returns the same bits as signed numbers
        samples = samples.view(np.uint32)
    least, most = int(samples.min()), int(samples.max())
    if least < 0 or most >> _DEEP:
        raise UnreadableSamples(
            f"whole numbers from {least:,} to {most:,} do not fit 0 to 65,535: scale the samples to 8 bits"
        )
    bits = _range(most, known)
    pixels = (samples >> (bits - 8)).astype(np.uint8)
    return Shallow(Image.fromarray(_BRIGHTEST - pixels if white_is_zero else pixels), _kind(bits, container))


def _declared(image: TiffImagePlugin.TiffImageFile) -> int:
    """Return the bits per sample that the file declares; 0 if it declares only the container's size."""
    tags = image.tag_v2
    bits = int(tags.get(_BITS, (_DEEP,))[0])
    if bits < _DEEP:
        return bits
    largest = tags.get(_LARGEST_SIGNED, tags.get(_LARGEST, 0))
    largest = largest[0] if isinstance(largest, tuple) else largest
    return 0 if largest >= (1 << bits) - 1 else int(largest).bit_length()


def _colour(image: Image.Image, data: Data, raw: str) -> Shallow:
    """Convert a colour image. Pillow reads the upper bytes; if their upper bits are empty, read the lower bytes too."""
    high = np.asarray(image)[:, :, :3] if image.mode != "CMYK" else np.asarray(image.convert("RGB"))
    samples = None if int(high.max()) > _HIGH_BYTE_OF_14_BITS else _whole_samples(image, data, raw, high)
    if samples is None:
        return Shallow(Image.fromarray(np.ascontiguousarray(high)), _kind(_DEEP, _DEEP))
    bits = _range(int(samples.max()), 0)
    return Shallow(Image.fromarray((samples >> (bits - 8)).astype(np.uint8)), _kind(bits, _DEEP))


def _whole_samples(
    image: Image.Image, data: Data, raw: str, high: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint16] | None:
    """Return a colour image's 16-bit samples; None if Pillow cannot read them or the file declares their range."""
    if image.format == "PPM":
        tile = _tiles(Image.open(io.BytesIO(data), formats=FORMATS))[0]  # opened again: loading empties the list
        if tile.codec_name != "ppm" or tile.args[-1] != (1 << _DEEP) - 1:
            return None
        stored = np.frombuffer(data, dtype=">u2", count=high.size, offset=tile.offset)
        return np.asarray(stored.astype(np.uint16).reshape(high.shape))
    other = _FOUR_BYTES if raw == _GREY_ALPHA else _SWAPPED.get(raw)
    if other is None:
        return None
    again = Image.open(io.BytesIO(data), formats=FORMATS)
    again.tile = [tile._replace(args=_with_rawmode(tile.args, other)) for tile in again.tile]
    low = np.asarray(again)[:, :, 1:2] if raw == _GREY_ALPHA else np.asarray(again)[:, :, :3]
    samples: npt.NDArray[np.uint16] = high.astype(np.uint16) << 8 | low
    return samples


def _float(image: Image.Image) -> Image.Image:
    white_is_zero = _white_is_zero(image)
    samples: npt.NDArray[np.float32] = np.asarray(image)
    least, most = float(samples.min()), float(samples.max())
    unit = most <= 1
    if not (least >= 0 and (unit or _LEAST_BRIGHTEST <= most <= _BRIGHTEST)):  # NaN fails too
        raise UnreadableSamples(
            f"floating point from {least:g} to {most:g} is neither 0 to 1 nor 0 to 255: scale the samples to 8 bits"
        )
    pixels = np.rint(samples * _BRIGHTEST if unit else samples).astype(np.uint8)
    return Image.fromarray(_BRIGHTEST - pixels if white_is_zero else pixels)


def _range(most: int, known: int) -> int:
    """Return the smallest of `RANGES` that holds the largest sample and the bits that the file declares."""
    return next(bits for bits in RANGES if max(most.bit_length(), known) <= bits)


def _kind(bits: int, container: int) -> str:
    return f"{bits}-bit" if bits == container else f"{bits}-bit in {container}-bit"


def _white_is_zero(image: Image.Image) -> bool:
    """Return whether zero is white in a TIFF. Pillow inverts such files only if they have 8 bits per sample."""
    return isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _in_planes(image: Image.Image) -> bool:
    """Return whether a TIFF stores samples of more than 8 bits with each colour in a separate plane."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.tag_v2.get(_PLANES) != _SEPARATE:
        return False
    bits = image.tag_v2.get(_BITS, (8,))
    return len(bits) > 1 and max(bits) > 8  # noqa: PLR2004 - bits of a byte


def _largest_in_header(image: Image.Image) -> int:
    """Return the largest sample that the header of a colour PPM allows; 0 for other files."""
    if image.format != "PPM" or image.mode != "RGB":
        return 0
    args = _tiles(image)[0].args if _tiles(image) else ()
    return int(args[-1]) if isinstance(args, tuple) and isinstance(args[-1], int) else 0


def _tiles(image: Image.Image) -> list[Any]:
    """Return Pillow's list of the parts of the file and their decoders."""
    return getattr(image, "tile", [])


def _rawmode(image: Image.Image) -> str:
    """Return Pillow's raw mode of the file, such as "RGB;16B"; "" if the format has none."""
    tiles = _tiles(image)
    args = tiles[0].args if tiles else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _with_rawmode(args: tuple[object, ...] | str | None, rawmode: str) -> tuple[object, ...] | str:
    return (rawmode, *args[1:]) if isinstance(args, tuple) else rawmode
