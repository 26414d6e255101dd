"""Part of a JPEG, to the bit what Pillow makes of it. Imports no torch.

Three quarters of the time of decoding a photograph go into its entropy code, which can be left early but not entered
late. Our own code for plain files (`native`) leaves it at the region's end and is quicker in it. libjpeg-turbo, for the
others and where nothing can be compiled, is shown a copy that says in its header that it is only as tall as that.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg

from pipelines.data.decode import Record
from pipelines.data.native import jpeg_region

_START, _END = b"\xff\xd8", b"\xff\xd9"
_MARKER, _SCAN = 0xFF, 0xDA
_PROGRESSIVE = 0xC2
_FRAMES = (0xC0, 0xC1, _PROGRESSIVE)  # baseline, extended sequential
_TABLES = (0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE)  # DHT, DQT, DRI, APPn, COM
_FRAME = struct.Struct(">HBHHB")  # length, bits per sample, height, width, components
_BLOCK = 8
_COMPONENTS = (1, 3)
_COLOURS = 3
# libjpeg-turbo, of what lies between the last row and the end or a restart; nothing can before the first row, since
# `read_header` has seen all that is there.
_LEFT_OUT = re.compile("extraneous bytes before marker 0xd[0-79]$")
_BELOW = 2  # rows that the smooth upsampling of colour looks at below the last one


Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What the frame header says."""

    width: int
    height: int
    height_at: int  # where in the file
    step: int  # rows that are coded together; 0 where the rows of the image are not coded one after another


def read_header(data: Record) -> JpegHeader | None:
    """None where it takes Pillow to say what this is: no JPEG, one cut short, CMYK, 12 bits, a size of zero, …"""
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


def _frame(data: Record, at: int) -> JpegHeader | None:
    """The frame header at a place."""
    length, bits, height, width, components = _FRAME.unpack_from(data, at + 2)
    if bits != _BLOCK or components not in _COMPONENTS or not width or not height or length != 8 + 3 * components:
        return None
    tallest = max(data[at + 11 + 3 * each] & 15 for each in range(components))
    return JpegHeader(width, height, at + 5, 0 if data[at + 1] == _PROGRESSIVE else _BLOCK * tallest)


def decode_region(data: Record, header: JpegHeader, box: Box) -> npt.NDArray[np.uint8] | None:
    """Pixels of `box` = (left, top, right, bottom), uint8 HxWx3; None where it takes Pillow to say what this is."""
    left, top, right, bottom = box
    region = jpeg_region()
    if region is not None and header.step:
        pixels = np.empty((bottom - top, right - left, _COLOURS), dtype=np.uint8)
        if region(bytes(data), len(data), left, top, right, bottom, pixels.ctypes.data):
            return pixels
    rows = decode_top(data, header, bottom)
    return None if rows is None else rows[top:bottom, left:right]


def decode_top(data: Record, header: JpegHeader, rows: int) -> npt.NDArray[np.uint8] | None:
    """At least the first `rows` rows, uint8 [rows or more, W, 3], by libjpeg-turbo; None as in `decode_region`."""
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
        # All the rows are there by now, and what follows them was to be left out.
        if height == header.height or not _LEFT_OUT.search(str(error)):
            return None
    return pixels
