"""What is odd about an image file, from its header: such images become RGB like all others, and are counted."""

from __future__ import annotations

import io
from collections.abc import Iterator

from PIL import Image

from pipelines.data.decode import FORMATS

_EXIF_ORIENTATION = 0x0112
_PNG_DEPTH_BYTE, _DEEP = 24, 16  # bits of a channel, in the IHDR chunk that a PNG begins with
_FORMAT_BY_SUFFIX = {
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
    "ppm": "PPM",
    "pgm": "PPM",
}


def kinds_of(data: bytes, key: str) -> list[str]:
    """Names of what is odd, none for a plain RGB image; `data` has been found to decode."""
    found = []
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            for kind in _kinds(image, data, key):
                found.append(kind)
    except Exception:  # Pillow's readers of EXIF and of further frames raise what they like; the pixels are whole
        found.append("damaged metadata")
    return found


def _kinds(image: Image.Image, data: bytes, key: str) -> Iterator[str]:
    if image.mode == "CMYK":
        yield "CMYK"
    if image.mode.startswith("I") or (image.format == "PNG" and data[_PNG_DEPTH_BYTE] == _DEEP):
        yield "16-bit"
    if image.mode in ("1", "L", "LA") or image.mode.startswith("I"):
        yield "grey"
    if image.mode == "P":
        yield "palette"
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        yield "transparent"
    form = "JPEG" if image.format == "MPO" else image.format  # a JPEG with further pictures behind it
    named = _FORMAT_BY_SUFFIX.get(key.rpartition(".")[2].lower())
    if named and named != form:
        yield f"{form} named {named}"
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        yield "EXIF-rotated"
    if getattr(image, "is_animated", False):
        yield "multi-frame"
