"""Images without labels: the interface of a source, and the decoding of a part. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipelines.config.crop import CropConfig
from pipelines.data.images.crops import eval_view
from pipelines.data.images.pillow import DecodeError, EncodedImage
from pipelines.data.images.stored import Stored, image_file
from pipelines.data.shards.stored_images import MAX_RECORD_BYTES
from pipelines.data.tasks.crops import Block


@dataclass(frozen=True, slots=True)
class UnlabelledImage:
    """One image in its stored form."""

    id: int  # in its data set; else the image's position in the source
    path: str  # file, key in a data set, or Parquet file and row
    record: EncodedImage
    fault: str = ""  # reason why there is no record


@dataclass(frozen=True, kw_only=True, slots=True)
class SourcePart:
    """Consecutive images of a source, which one data task reads."""

    first: int  # position of the first image in the source
    rows: int


class Images(Protocol):
    """A source of images. Its parts hold every image exactly once, and are the same on every machine."""

    @property
    def description(self) -> str:
        """Description for people."""

    @property
    def fingerprint(self) -> str:
        """Text that changes if the images change."""

    @property
    def stored(self) -> Stored | None:
        """Form of the records; None = image files, whose pixels the model decides."""

    @property
    def parts(self) -> Sequence[SourcePart]:
        """All parts, in order and without gaps."""

    def read(self, part: SourcePart) -> Iterator[UnlabelledImage]:
        """Yield a part's images in order; an unreadable one has a fault. Raises `UserError` if all are lost."""


def decoded(images: Images, part: SourcePart, model: Mapping[str, Any], rows_per_block: int) -> Iterator[Block]:
    """Read a part, and decode its images to the input of a registered model, given by its metadata.

    Yields:
        Blocks of n rows: image uint8 [n,S,S,3], id int64 [n], path object [n], and reason object [n]: "", or the
        reason why the image is not decoded (it is black then).
    """
    found = images.read(part)
    crop, form = CropConfig.of_shown(model), images.stored or image_file(model)
    size = crop.image_size
    while group := list(itertools.islice(found, rows_per_block)):
        block: Block = {
            "image": np.zeros((len(group), size, size, 3), dtype=np.uint8),
            "id": np.array([image.id for image in group], dtype=np.int64),
            "path": np.array([image.path for image in group], dtype=object),
            "reason": np.array([image.fault for image in group], dtype=object),
        }
        for row, image in enumerate(group):
            if image.fault:
                continue
            if len(image.record) > MAX_RECORD_BYTES:
                block["reason"][row] = f"{len(image.record):,} bytes are more than {MAX_RECORD_BYTES:,}"
                continue
            try:
                block["image"][row] = eval_view(image.record, form, crop)
            except DecodeError as error:
                block["reason"][row] = str(error)
        yield block


def even_parts(rows: int, size: int) -> list[SourcePart]:
    """Return parts of `size` rows; the last part may be shorter."""
    return [SourcePart(first=first, rows=min(size, rows - first)) for first in range(0, rows, size)]
