"""Decoding of a region of a JPEG, bit-identical to Pillow's result. Imports no torch.

Entropy decoding takes three quarters of the time of a photograph. It cannot start in the middle of the file, but it
can stop early. Our C code for plain files (`native`) stops at the region's end and decodes faster. libjpeg-turbo does
the other files, and all files where no C compiler exists. It gets a copy whose header says that the image ends there.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg

from pipelines.data.images.native import jpeg_region
from pipelines.data.images.pillow import EncodedImage

_START, _END = b"\xff\xd8", b"\xff\xd9"
_MARKER, _SCAN = 0xFF, 0xDA
_PROGRESSIVE = 0xC2
_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)  # baseline, extended sequential
_TABLES = (0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)  # DHT, DQT, DRI, APPn, COM
_FRAME = struct.Struct(">HBHHB")  # length, bits per sample, height, width, components
_BLOCK = 8
_COMPONENTS = (1, 3)
_COLOURS = 3
# libjpeg-turbo's error about bytes between the last row and a restart or the end of the file. There are no such bytes
# before the first row: `read_header` has read everything there.
_SKIPPED_ROWS = re.compile("extraneous bytes before marker 0xd[0-79]$")
_BELOW = 2  # rows below the last one that the smooth upsampling of colour reads


Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """Contents of a JPEG's frame header."""

    width: int
    height: int
    height_at: int  # offset of the height in the file, bytes
    step: int  # rows that are coded together; 0 if the image's rows are not coded in order (progressive)
    grey: bool  # one component


def read_header(data: EncodedImage) -> JpegHeader | None:
    """Read the frame header of a plain JPEG.

    Return None for a file that Pillow has to judge: not a JPEG, truncated, CMYK, 12 bits, a size of zero, …
    """
    if data[:2] != _START or data[-2:] != _END:
        return None
    header = None
    at, end = 2, len(data) - 2 - _FRAME.size
    while at < end and data[at] == _MARKER:
        marker = data[at + 1]
        if marker == _SCAN:
            return header
        if marker in _FRAMES and header is None:
            header = _frame(data, at)
            if header is None:
                return None
        elif marker not in _TABLES:
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _frame(data: EncodedImage, at: int) -> JpegHeader | None:
    """Read the frame header at offset `at`."""
    length, bits, height, width, components = _FRAME.unpack_from(data, at + 2)
    if bits != _BLOCK or components not in _COMPONENTS or not width or not height or length != 8 + 3 * components:
        return None
    tallest = max(data[at + 11 + 3 * each] & 15 for each in range(components))
    step = 0 if data[at + 1] == _PROGRESSIVE else _BLOCK * tallest
    return JpegHeader(width, height, at + 5, step, grey=components == 1)


def decode_region(data: EncodedImage, header: JpegHeader, box: Box) -> npt.NDArray[np.uint8] | None:
    """Decode `box` = (left, top, right, bottom): uint8 HxWx3. Return None for a file that Pillow has to judge."""
    left, top, right, bottom = box
    region = jpeg_region()
    if region is not None and header.step:
        pixels = np.empty((bottom - top, right - left, _COLOURS), dtype=np.uint8)
        if region(bytes(data), len(data), left, top, right, bottom, pixels.ctypes.data):
            return pixels
    rows = decode_top(data, header, bottom)
    return None if rows is None else rows[top:bottom, left:right]


def decode_top(data: EncodedImage, header: JpegHeader, rows: int) -> npt.NDArray[np.uint8] | None:
    """Decode at least the first `rows` rows, by libjpeg-turbo: uint8 [rows or more, W, 3].

    Return None for a file that Pillow has to judge.
    """
    height = header.height
    if header.step:
        height = min(height, -(-(rows + _BELOW) // header.step) * header.step)
    if height < header.height:
        data = bytearray(data)
        struct.pack_into(">H", data, header.height_at, height)
    pixels = np.empty((height, header.width, _COLOURS), dtype=np.uint8)
    try:
        simplejpeg.decode_jpeg(data, buffer=pixels)
    except ValueError as error:
        # The error about skipped rows comes after all wanted rows are decoded.
        if height == header.height or not _SKIPPED_ROWS.search(str(error)):
            return None
    return pixels
