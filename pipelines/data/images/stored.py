"""The forms in which a data set stores its images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Form = Literal["original", "jpeg", "raw"]
FilePixels = Literal["displayed", "stored"]
"""Which pixels an image file has. displayed: as viewers show it (`pipelines.data.images.display`); stored: as coded."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Encoding of the images in the column `image`."""

    form: Form  # original: the source's bytes; jpeg: JPEG; raw: uint8 [size, size, channels]
    size: int  # jpeg: most pixels of the shorter side; raw: side; original: 0
    quality: int  # jpeg: Pillow's quality; else 0
    channels: int  # raw: 1 or 3; else 3
    pixels: FilePixels | None = None
    """Pixels of the source's files. None: "stored" for original and jpeg; for raw, a source of arrays, or a data set
    older than this setting."""

    @property
    def displayed(self) -> bool:
        """Return whether decoding must turn images and convert their colours: later forms have that done to them."""
        return self.form == "original" and self.pixels == "displayed"

    @property
    def file_pixels(self) -> FilePixels:
        """Return the pixels of files that a model trained on this data set should get."""
        return self.pixels or ("displayed" if self.form == "raw" else "stored")

    @property
    def fields(self) -> dict[str, Any]:
        """Return the fields for a manifest, without `pixels` if it is None: older digests have no such field."""
        fields = dataclasses.asdict(self)
        if self.pixels is None:
            del fields["pixels"]
        return fields


def image_file(model: Mapping[str, Any]) -> Stored:
    """Return the form of image files for a registered model, from its metadata. Old versions get stored pixels."""
    return Stored(form="original", size=0, quality=0, channels=3, pixels=model.get("pixels", "stored"))
