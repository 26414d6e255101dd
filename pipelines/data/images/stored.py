"""The forms in which a data set stores its images."""

from __future__ import annotations

import dataclasses
from typing import Literal

Form = Literal["original", "jpeg", "raw"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Encoding of the images in the column `image`."""

    form: Form  # original: the source's bytes; jpeg: JPEG; raw: uint8 [size, size, channels]
    size: int  # jpeg: most pixels of the shorter side; raw: side; original: 0
    quality: int  # jpeg: Pillow's quality; else 0
    channels: int  # raw: 1 or 3; else 3
