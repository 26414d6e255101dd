"""The image formats that are read, and names for other files. Imports Pillow only; pillow-heif for the first HEIC file.

Pillow identifies a file by its content, never by its name. A file that Pillow cannot identify is named from its first
bytes, so that an error says what to do.
"""

from __future__ import annotations

import functools
import io

from PIL import Image, TiffImagePlugin, features

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *(("AVIF",) if features.check("avif") else ()))
"""Formats that are read. Pillow would also try formats that start other programs, or that nobody trains on.
HEIC is read too, if the package pillow-heif is installed (the extra `heic`)."""

REPAIRED = "resnet-ray: read without its metadata"
"""Key in `Image.info` that marks an image whose metadata Pillow could not read."""

Data = bytes | bytearray | memoryview

_JPEG_START = b"\xff\xd8"
_SCAN = 0xDA
_EIGHT_BITS = 8
_HEAD = 4096  # bytes that tell one kind of file from another
_FRAMES = {
    0xC0: "",
    0xC1: "",
    0xC2: "",
    0xC3: "lossless ",
    0xC5: "hierarchical ",
    0xC6: "hierarchical ",
    0xC7: "hierarchical lossless ",
    0xC9: "",
    0xCA: "",
    0xCB: "lossless ",
    0xCD: "hierarchical ",
    0xCE: "hierarchical ",
    0xCF: "hierarchical lossless ",
    0xF7: "JPEG-LS ",
}
"""Kind of JPEG, by the marker of its frame header."""
_FRAME_BYTES = 10
_JFIF, _ADOBE = (0xE0, b"JFIF\0", 14), (0xEE, b"Adobe", 12)
"""Marker, name and minimum bytes of the segments that decide how colours are read."""
_METADATA = (*range(0xE0, 0xF0), 0xFE)

_AVIF, _HEIC = "an AVIF image", "a HEIC image"
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
    b"crx ": "a camera's raw file",
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"), _HEIC),
    **dict.fromkeys((b"mif1", b"msf1"), _HEIC),
}
"""Kind of file, by the brand of a file in boxes (ISO 14496-12). Other brands are videos."""
_GENERAL_BRANDS = (b"mif1", b"msf1")
"""Brands of any image coding; the compatible brands, which follow, say which."""
_NEEDED = {
    _AVIF: ", which needs Pillow 11.3 or later with AVIF: pip install --upgrade pillow",
    _HEIC: ", which needs the extra heic: pip install pillow-heif",
}
_MAGIC = (
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"8BPS", "a Photoshop file"),
    (b"v/1\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"#?RGBE", "a Radiance HDR image"),
    (b"qoif", "a QOI image"),
    (b"DDS ", "a DDS texture"),
    (b"P7\n", "a PAM image"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"SIMPLE  =", "a FITS file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF document"),
    (b"<svg", "an SVG drawing"),
)
_DAMAGED = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"RIFF", "WebP"),
    (b"BM", "BMP"),
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_NUMBERS = {1: "unsigned", 2: "signed", 3: "floating point"}
_DICOM = (128, b"DICM")
_ADVICE = ", which is not read here: convert it to JPEG or PNG, 8 bits a sample"
_LFS = b"version https://git-lfs"


def identified(data: Data) -> Image.Image:
    """Open an image file: read its header, not its pixels.

    libjpeg skips metadata that Pillow fails on. A JPEG that Pillow refuses is therefore retried without its metadata.

    Raises:
        UnidentifiedImageError: the file has none of `FORMATS`.
        Exception: any exception that Pillow's plugins raise on damaged headers.
    """
    if _in_boxes(bytes(data[:_HEAD])) == _HEIC and _heif_plugin():
        return Image.open(io.BytesIO(data), formats=("HEIF",))
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:  # Pillow's plugins raise any exception on damaged headers
        plain = without_metadata(data)
        if plain is None:
            raise
        image = Image.open(io.BytesIO(plain), formats=FORMATS)
        image.info[REPAIRED] = True
        return image


def without_metadata(data: Data) -> bytes | None:
    """Remove a JPEG's comments and application segments, except those that decide how colours are read.

    Return None if the file is not a JPEG or has no such segments.
    """
    if data[:2] != _JPEG_START:
        return None
    kept = [_JPEG_START]
    found = False
    at = 2
    for marker, begin, end in jpeg_segments(data):
        segment = bytes(data[begin:end])
        if marker in _METADATA and not _decides_colours(marker, segment):
            found = True
        else:
            kept.append(segment)
        at = end
    return b"".join([*kept, bytes(data[at:])]) if found else None


def why_unreadable(data: Data) -> str:
    """Name a file that Pillow does not identify, for an error message."""
    head = bytes(data[:_HEAD])
    if head.startswith(_LFS):
        return f"not an image but a Git LFS pointer ({len(data):,} bytes): run git lfs pull"
    if boxes := _in_boxes(head):
        readable = "AVIF" in FORMATS if boxes == _AVIF else _heif_plugin()
        return f"{boxes} that is damaged" if boxes in _NEEDED and readable else f"{boxes}{_NEEDED.get(boxes, _ADVICE)}"
    kind = _jpeg(data) or _tiff(data) or _named(head)
    if kind:
        return f"{kind}{_ADVICE}"
    damaged = next((name for magic, name in _DAMAGED if head.startswith(magic)), None)
    damaged = "JPEG" if data[:2] == _JPEG_START else damaged
    return f"a damaged {damaged} ({len(data):,} bytes)" if damaged else f"not an image ({len(data):,} bytes)"


def unread_jpeg(data: Data) -> str:
    """Name a JPEG of an unsupported kind, for an error message; "" for all other files."""
    kind = _jpeg(data)
    return f"{kind}{_ADVICE}" if kind else ""


def jpeg_segments(data: Data) -> list[tuple[int, int, int]]:
    """Return (marker, begin, end) of each segment of a JPEG before its first scan."""
    found = []
    at, size = 2, len(data)
    while at + 4 <= size and data[at] == 0xFF:  # noqa: PLR2004 - first byte of every marker
        marker = data[at + 1]
        end = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == _SCAN or end > size:
            break
        found.append((marker, at, end))
        at = end
    return found


def _decides_colours(marker: int, segment: bytes) -> bool:
    return any(
        marker == kept and segment[4:].startswith(name) and len(segment) - 4 >= least
        for kept, name, least in (_JFIF, _ADOBE)
    )


def _jpeg(data: Data) -> str | None:
    """Name a JPEG of an unsupported kind; None for other files."""
    if data[:2] != _JPEG_START:
        return None
    for marker, begin, end in jpeg_segments(data):
        if marker not in _FRAMES or end - begin < _FRAME_BYTES:
            continue
        bits, components, kind = data[begin + 4], data[begin + 9], _FRAMES[marker]
        if kind or bits != _EIGHT_BITS:
            form = "JPEG-LS image" if kind.startswith("JPEG-LS") else f"{kind}JPEG"
            return f"a {form} of {bits} bits a sample"
        if components not in (1, 3, 4):
            return f"a JPEG of {components} components"
    return None


def _tiff(data: Data) -> str | None:
    """Name a TIFF by its samples; None for other files."""
    if bytes(data[:4]) not in _TIFF:
        return None
    try:
        file = io.BytesIO(data)
        big = data[2] == ord("+") or data[3] == ord("+")
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if big else 8))
        file.seek(tags.next)
        tags.load(file)
        bits, numbers = tags[258], tags.get(339, (1,))
    except Exception:  # the directory is damaged
        return f"a damaged TIFF ({len(data):,} bytes)"
    number = _TIFF_NUMBERS.get(numbers[0], "unknown numbers")
    return f"a TIFF of {len(bits)} samples a pixel of {bits[0]} bits ({number}), photometric {tags.get(262, 'none')}"


def _in_boxes(head: bytes) -> str:
    """Name a file in boxes by its brand; "" for other files."""
    if head[4:8] != b"ftyp":
        return ""
    brand = head[8:12]
    if brand in _GENERAL_BRANDS:
        compatible = head[16 : int.from_bytes(head[:4], "big")]
        others = (compatible[place : place + 4] for place in range(0, len(compatible), 4))
        brand = next((other for other in others if other in _BRANDS and other not in _GENERAL_BRANDS), brand)
    return _BRANDS.get(brand, "a video")


@functools.cache
def _heif_plugin() -> bool:
    """Let Pillow read HEIC, whose package takes a second to import; False if it is not installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    return True


def _named(head: bytes) -> str | None:
    if head[_DICOM[0] :].startswith(_DICOM[1]):
        return "a DICOM file"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)
