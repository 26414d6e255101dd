"""What is odd about an image file, from its header: such images become RGB like all others, and are counted."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from pipelines.data.depth import is_deep, shallow
from pipelines.data.formats import REPAIRED, identified

_EXIF_ORIENTATION = 0x0112
_FORMAT_BY_SUFFIX = {
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif", "jif", "jfi", "pjpeg", "pjp", "mpo"), "JPEG"),
    "avif": "AVIF",
    "avifs": "AVIF",
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
    """Names of what is odd, none for a plain RGB image; `data` has been found to decode."""
    found = []
    try:
        with identified(data) as image:
            for kind in _kinds(image, data, key):
                found.append(kind)
    except Exception:  # Pillow's readers of EXIF and of further frames raise what they like; the pixels are whole
        found.append("damaged metadata")
    return found


def _kinds(image: Image.Image, data: bytes, key: str) -> Iterator[str]:
    if image.mode == "CMYK":
        yield "CMYK"
    deep = shallow(identified(data), data) if is_deep(image) else None  # opened again: loading closes a TIFF
    if deep is not None:
        yield deep.kind
    if image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I"):
        yield "grey"
    if image.mode == "P":
        yield "palette"
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        yield "transparent"
    form = "JPEG" if image.format == "MPO" else image.format  # a JPEG with further pictures behind it
    named = _FORMAT_BY_SUFFIX.get(key.rpartition(".")[2].lower())
    if named and named != form:
        yield f"{form} named {named}"
    if image.info.get(REPAIRED):
        yield "damaged metadata"
    elif image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        yield "EXIF-rotated"
    if getattr(image, "is_animated", False):
        yield "multi-frame"
