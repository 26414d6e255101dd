"""What viewers do to an image file's pixels before they show it: turn it upright, and convert its colours to sRGB.

The orientation is the EXIF tag of that name; the colours are those of the file's ICC profile. JPEGs, which a fast
decoder reads in part, are parsed here; Pillow reads the metadata of all other formats. Imports Pillow and numpy only.

Legend: stored = as coded in the file; upright = as shown. Regions are (left, top, right, bottom), in pixels.
"""

from __future__ import annotations

import functools
import io
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from pipelines.data.images.formats import Data, jpeg_segments

_ORIENTATION = 0x0112
_EXIF, _EXIF_NAME = 0xE1, b"Exif\0\0"
_ICC, _ICC_NAME = 0xE2, b"ICC_PROFILE\0"
_ICC_HEAD = len(_ICC_NAME) + 2  # then come the chunk's number and the number of chunks
_SEGMENT_HEAD = 4  # marker and length
_ENTRY = 12  # bytes of an entry of a TIFF directory
_NUMBERS = {1: "B", 3: "H", 4: "I"}  # types of TIFF that hold a whole number
_UPRIGHT = 1
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
"""By orientation: swap rows and columns; then reverse the columns; then reverse the rows."""
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SAME = 1
"""Levels of 255. A profile that moves no colour further is sRGB."""
_GRID = 17  # levels per channel on which a profile is compared with sRGB
_PROFILES = 16  # kept transforms: the photographs of one data set have few different profiles
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_GREY_MODES = ("1", "L", "LA")

Region = tuple[int, int, int, int]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Display:
    """How a file is shown: its orientation (EXIF, 1 to 8) and its ICC profile; b"" = none."""

    orientation: int = _UPRIGHT
    profile: bytes = b""

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) of the upright image."""
        return (height, width) if _TURNS[self.orientation][0] else (width, height)

    def stored_region(self, region: Region, width: int, height: int) -> Region:
        """Return the part of the stored image, `width` x `height`, that holds a region of the upright one."""
        left, top, right, bottom = region
        swap, across, down = _TURNS[self.orientation]
        upright_width, upright_height = self.size(width, height)
        if across:
            left, right = upright_width - right, upright_width - left
        if down:
            top, bottom = upright_height - bottom, upright_height - top
        return (top, left, bottom, right) if swap else (left, top, right, bottom)

    def shown(self, pixels: Pixels, *, grey: bool) -> Pixels:
        """Return upright sRGB pixels, HWC, of stored RGB pixels. `grey`: the file has one channel, repeated in all."""
        conversion = _conversion(self.profile, "L" if grey else "RGB")
        if conversion is not None:
            values = np.ascontiguousarray(pixels[:, :, 0] if conversion.space == "L" else pixels)
            pixels = np.asarray(conversion.transform.apply(Image.fromarray(values)))
        if not self.turns:
            return pixels
        swap, across, down = _TURNS[self.orientation]
        turned = pixels.swapaxes(0, 1) if swap else pixels
        return np.ascontiguousarray(turned[:: -1 if down else 1, :: -1 if across else 1])

    @property
    def turns(self) -> bool:
        """Return whether the stored image is not upright."""
        return self.orientation != _UPRIGHT

    def converts(self, mode: str) -> bool:
        """Return whether the colours of an image of this mode are converted."""
        return _conversion(self.profile, mode) is not None


def display_of_jpeg(data: Data) -> Display:
    """Parse the orientation and the profile of a JPEG; damaged ones are ignored."""
    orientation, chunks = 0, []
    for marker, begin, end in jpeg_segments(data):
        if marker == _EXIF and not orientation and data[begin + _SEGMENT_HEAD :][:6] == _EXIF_NAME:
            orientation = _tiff_orientation(bytes(data[begin + _SEGMENT_HEAD + len(_EXIF_NAME) : end]))
        elif marker == _ICC and data[begin + _SEGMENT_HEAD :][: len(_ICC_NAME)] == _ICC_NAME:
            chunks.append(bytes(data[begin + _SEGMENT_HEAD + len(_ICC_NAME) : end]))
    return Display(orientation or _UPRIGHT, _joined(chunks))


def display_of_image(image: Image.Image, data: Data) -> Display:
    """Return how an opened file is shown. Call it after `image.load()`: PNG may have its metadata at the end."""
    if image.format in ("JPEG", "MPO"):
        return display_of_jpeg(data)
    try:
        orientation = image.getexif().get(_ORIENTATION, _UPRIGHT)  # Pillow has turned TIFF and HEIF itself
    except Exception:  # Pillow's readers of EXIF raise any exception; the pixels are intact
        orientation = _UPRIGHT
    profile = image.info.get("icc_profile") or b""
    return Display(orientation if orientation in _TURNS else _UPRIGHT, bytes(profile))


def as_shown(image: Image.Image, display: Display) -> Image.Image:
    """Convert a loaded image of 8 bits a sample to upright sRGB, mode RGB."""
    conversion = _conversion(display.profile, image.mode)
    rgb = image.convert(conversion.space if conversion else "RGB")
    rgb = conversion.transform.apply(rgb) if conversion else rgb
    turn = _TRANSPOSES.get(display.orientation)
    return rgb if turn is None else rgb.transpose(turn)


class _Conversion(NamedTuple):
    """A conversion of colours to sRGB."""

    transform: ImageCms.ImageCmsTransform
    space: str  # mode of the images that it takes


def _conversion(profile: bytes, mode: str) -> _Conversion | None:
    """Return the conversion of images of a mode; None if the profile is sRGB, unreadable, or for other images."""
    space = _space(profile) if profile else ""
    if not space or (space == "CMYK") != (mode == "CMYK") or (space == "L" and mode not in _GREY_MODES):
        return None
    transform = _transform(profile, space)
    return None if transform is None else _Conversion(transform, space)


@functools.lru_cache(maxsize=_PROFILES)
def _space(profile: bytes) -> str:
    """Return the mode of images that a profile describes; "" if it is unreadable or of another kind."""
    try:
        return _SPACES.get(ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space, "")
    except OSError:  # LittleCMS cannot read it
        return ""


@functools.lru_cache(maxsize=_PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB; None if the profile is sRGB, or cannot be used."""
    target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.ImageCmsTransform(source, target, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
    except (OSError, ValueError):  # a profile without the tables that a conversion needs
        return None
    if mode == "CMYK":
        return transform
    colours = _colours(mode)
    moved = np.abs(np.asarray(transform.apply(colours)).astype(int) - np.asarray(colours.convert("RGB")))
    return None if moved.max() <= _SAME else transform


def _colours(mode: str) -> Image.Image:
    """Return an image of all greys or of a grid of colours."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.rint(np.linspace(0, 255, _GRID)).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    return Image.fromarray(grid.reshape(_GRID, _GRID * _GRID, 3))


def _joined(chunks: list[bytes]) -> bytes:
    """Join the chunks of a JPEG's profile, each of which begins with its number and the number of chunks."""
    if not chunks or any(len(chunk) < _ICC_HEAD - len(_ICC_NAME) or chunk[1] != len(chunks) for chunk in chunks):
        return b""
    ordered = sorted(chunks)
    complete = all(chunk[0] == number for number, chunk in enumerate(ordered, start=1))
    return b"".join(chunk[2:] for chunk in ordered) if complete else b""


def _tiff_orientation(data: bytes) -> int:
    """Return the orientation in the first directory of a TIFF structure, as EXIF is; 0 if it has no valid one."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return 0
    try:
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, first)
        for place in range(first + 2, first + 2 + count * _ENTRY, _ENTRY):
            tag, kind = struct.unpack_from(f"{order}HH", data, place)
            if tag == _ORIENTATION:
                (value,) = struct.unpack_from(f"{order}{_NUMBERS[kind]}", data, place + 8)
                return value if value in _TURNS else 0
    except (struct.error, KeyError):  # the directory is damaged
        pass
    return 0
