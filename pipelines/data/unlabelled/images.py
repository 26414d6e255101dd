"""Images without labels: what a source of them is, and how a data task decodes a part of one. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipelines.data.decode import CropConfig, DecodeError, Record
from pipelines.data.manifest import Stored
from pipelines.data.records import MAX_RECORD_BYTES
from pipelines.data.task import Block
from pipelines.data.views import eval_view


@dataclass(frozen=True, slots=True)
class Picture:
    """One image as it is stored."""

    id: int  # in its data set; elsewhere its place in the source
    path: str  # its file, or its key in the data set or Parquet file
    record: Record
    fault: str = ""  # why there is no record


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Consecutive images of a source, which one data task reads."""

    first: int  # place of the first one
    rows: int


class Images(Protocol):
    """A source. Its parts hold every image exactly once, and are the same whenever and wherever it is opened."""

    @property
    def description(self) -> str:
        """For people."""

    @property
    def fingerprint(self) -> str:
        """Changes where the images do."""

    @property
    def stored(self) -> Stored:
        """The form of the records."""

    @property
    def parts(self) -> Sequence[Part]:
        """In order, without gaps."""

    def read(self, part: Part) -> Iterator[Picture]:
        """The images of a part, in order; what cannot be read has a fault. Raises `UserError` where all are lost."""


def decoded(images: Images, part: Part, crop: CropConfig, rows_per_block: int) -> Iterator[Block]:
    """A part as a model is shown it.

    Yields:
        Blocks of n rows: image uint8 [n,S,S,3], id int64 [n], path object [n], and reason object [n]: "", or why the
        image is black.
    """
    pictures = images.read(part)
    size = crop.image_size
    while some := list(itertools.islice(pictures, rows_per_block)):
        block: Block = {
            "image": np.zeros((len(some), size, size, 3), dtype=np.uint8),
            "id": np.array([picture.id for picture in some], dtype=np.int64),
            "path": np.array([picture.path for picture in some], dtype=object),
            "reason": np.array([picture.fault for picture in some], dtype=object),
        }
        for row, picture in enumerate(some):
            if picture.fault:
                continue
            if len(picture.record) > MAX_RECORD_BYTES:
                block["reason"][row] = f"{len(picture.record):,} bytes are more than {MAX_RECORD_BYTES:,}"
                continue
            try:
                block["image"][row] = eval_view(picture.record, images.stored, crop)
            except DecodeError as error:
                block["reason"][row] = str(error)
        yield block


def even_parts(rows: int, size: int) -> list[Part]:
    """Parts of `size` rows, the last one shorter."""
    return [Part(first=first, rows=min(size, rows - first)) for first in range(0, rows, size)]
