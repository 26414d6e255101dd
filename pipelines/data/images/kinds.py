"""Unusual kinds of image file (CMYK, grey, EXIF-rotated, …), found in the header.

Such images become RGB like all others. The report of prepare counts them by kind.
"""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from pipelines.data.images.bit_depth import is_deep, shallow
from pipelines.data.images.display import Display, display_of_image
from pipelines.data.images.formats import REPAIRED, identified

_FORMAT_BY_SUFFIX = {
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif", "jif", "jfi", "pjpeg", "pjp", "mpo"), "JPEG"),
    "avif": "AVIF",
    "avifs": "AVIF",
    **dict.fromkeys(("heic", "heif", "hif"), "HEIF"),
    "png": "PNG",
    "apng": "PNG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
    "ppm": "PPM",
    "pgm": "PPM",
    "pbm": "PPM",
    "pnm": "PPM",
}


def kinds_of(data: bytes, key: str) -> list[str]:
    """Return the unusual kinds of an image, none for a plain RGB image. `data` must be an image that decodes."""
    found = []
    try:
        with identified(data) as image:
            for kind in _kinds(image, data, key):
                found.append(kind)
    except Exception:  # Pillow's readers of EXIF and of later frames raise any exception; the pixels are intact
        found.append("damaged metadata")
    return found


def _kinds(image: Image.Image, data: bytes, key: str) -> Iterator[str]:
    if image.mode == "CMYK":
        yield "CMYK"
    deep = shallow(identified(data), data) if is_deep(image) else None  # opened again: loading would close a TIFF
    if deep is not None:
        yield deep.kind
    if image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I"):
        yield "grey"
    if image.mode == "P":
        yield "palette"
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        yield "transparent"
    form = "JPEG" if image.format == "MPO" else image.format  # MPO: a JPEG followed by more images
    named = _FORMAT_BY_SUFFIX.get(key.rpartition(".")[2].lower())
    if named and named != form:
        yield f"{form} named {named}"
    if image.info.get(REPAIRED):
        yield "damaged metadata"
    else:
        image.getexif()  # raises if damaged
    yield from _displayed(display_of_image(image, data), image.mode if deep is None else deep.image.mode)
    if getattr(image, "is_animated", False):
        yield "multi-frame"


def _displayed(display: Display, mode: str) -> Iterator[str]:
    """Yield what viewers change in an image of this mode."""
    if display.turns:
        yield "EXIF-rotated"
    if display.converts(mode):
        yield "ICC profile"
