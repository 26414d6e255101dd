"""Files of more than 8 bits a sample that Pillow cannot write."""

from __future__ import annotations

import struct
import zlib
from typing import Literal

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.generic]


def png(samples: Samples) -> bytes:
    """A PNG of 16 bits: grey, grey with alpha, colour or colour with alpha, by the number of channels."""
    height, width = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def ppm(samples: Samples, largest: int) -> bytes:
    """A PGM or PPM whose header names its largest sample."""
    magic = 6 if samples.ndim == 3 else 5
    return f"P{magic} {samples.shape[1]} {samples.shape[0]} {largest}\n".encode() + samples.astype(">u2").tobytes()


def tiff(
    samples: Samples,
    *,
    photometric: int,
    planes: bool = False,
    order: Literal["<", ">"] = "<",
    largest: int | None = None,
) -> bytes:
    """An uncompressed TIFF of one strip, or of one for each channel."""
    height, width = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    stored = samples.astype(samples.dtype.newbyteorder(order))
    strips = [stored[:, :, place].tobytes() for place in range(channels)] if planes else [stored.tobytes()]
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8 * samples.dtype.itemsize] * channels),
        259: ("H", [1]),
        262: ("H", [photometric]),
        273: ("I", [0] * len(strips)),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if planes else 1]),
        339: ("H", [kind] * channels),
    }
    if largest is not None:
        tags[281] = ("H", [largest])
    end = 8 + 2 + 12 * len(tags) + 4
    long = {
        tag: struct.pack(order + form * len(values), *values)
        for tag, (form, values) in tags.items()
        if struct.calcsize(f"={form}") * len(values) > 4
    }
    first = end + sum(map(len, long.values()))
    tags[273] = ("I", [first + sum(map(len, strips[:place])) for place in range(len(strips))])
    entries, tail = b"", b""
    for tag, (form, values) in sorted(tags.items()):
        packed = struct.pack(order + form * len(values), *values)
        value = struct.pack(order + "I", end + len(tail)) if len(packed) > 4 else packed.ljust(4, b"\0")
        tail += packed if len(packed) > 4 else b""
        entries += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[form], len(values)) + value
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return head + struct.pack(order + "H", len(tags)) + entries + bytes(4) + tail + b"".join(strips)
