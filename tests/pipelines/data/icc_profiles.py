"""ICC profiles made of published numbers, and the conversion that they stand for, computed in floating point."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
"""Gamma, a, b, c, d of IEC 61966-2-1: ((a x + b) ** gamma from d on, c x below."""
P3_PRIMARIES = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
"""XYZ of red, green and blue, adapted to D50, as in Apple's profile Display P3."""
SRGB_PRIMARIES = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))
P3_TO_SRGB = np.array(
    [
        [1.2249401763, -0.2249401763, 0.0],
        [-0.0420569547, 1.0420569547, 0.0],
        [-0.0196375546, -0.0786360456, 1.0982736001],
    ]
)
"""From linear Display P3 to linear sRGB; both have the white of D65."""
_D50 = (0.9642, 1.0, 0.8249)


def rgb_profile(primaries: Sequence[Sequence[float]], curve: Sequence[float] = SRGB_CURVE) -> bytes:
    """A profile of three primaries and one curve (ICC.1, version 4)."""
    tone = b"para" + bytes(4) + struct.pack(">HH", 3, 0) + b"".join(map(_fixed, curve))
    colours = {name: _xyz(each) for name, each in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return _profile(b"RGB ", {**colours, b"wtpt": _xyz(_D50), **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), tone)})


def grey_profile(gamma: float) -> bytes:
    return _profile(
        b"GRAY", {b"kTRC": b"para" + bytes(4) + struct.pack(">HH", 0, 0) + _fixed(gamma), b"wtpt": _xyz(_D50)}
    )


def p3_in_srgb(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """What pixels of Display P3 are in sRGB, levels of 255, not rounded."""
    linear = np.clip(linear_of(pixels / 255) @ P3_TO_SRGB.T, 0, 1)
    return coded(linear) * 255


def linear_of(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def coded(linear: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, values))


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = "test".encode("utf-16-be")
    named = b"mluc" + bytes(4) + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(text), 28) + text
    tags = {b"desc": named, b"cprt": named, **tags}
    table, body, begin = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", begin + len(body), len(content))
        body += content.ljust(-(-len(content) // 4) * 4, b"\0")
    head = struct.pack(">I4sI4s4s4s", begin + len(body), bytes(4), 0x04300000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(map(_fixed, _D50))
    return head.ljust(128, b"\0") + table + body
