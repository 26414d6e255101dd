"""What a data task runs for testing at several scales: whole images, resized and not cropped. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipelines.data.decode import CropConfig
from pipelines.data.manifest import Manifest
from pipelines.data.plan import WorkItem
from pipelines.data.read import Reader
from pipelines.data.records import Records
from pipelines.data.task import Block
from pipelines.data.views import whole_views

if TYPE_CHECKING:
    from infra.storage import Store

Scales = tuple[npt.NDArray[np.uint8], ...]
"""One image at every scale, uint8 H x W x 3 each."""


def column(scale: int) -> str:
    """The column of a block that has the images whose shorter side is `scale` pixels."""
    return f"image_{scale}"


def load_whole(
    store: Store, manifest: Manifest, item: WorkItem, scales: Sequence[int], crop: CropConfig
) -> Iterator[Block]:
    """Fetch, verify, decode and resize an item: the shorter side to each of `scales`, in pixels.

    Of `crop` the way of decoding and resizing counts, and nothing else.
    Images of different shape do not fit into one array, and none is padded: each shape gets a block of its own.

    Yields:
        Blocks: `column(scale)` uint8 [n,H,W,3] for every scale, label int64 [n], id int64 [n].

    Raises:
        UserError: a shard is missing (IntegrityError: differs from the manifest).
        BadSample: an image does not decode, or its label is no class.
    """
    records = Records(Reader(store=store, manifest=manifest).fetch(item), manifest, tolerant=False)
    ids, labels = records.ids, records.labels
    shapes: dict[tuple[tuple[int, ...], ...], list[tuple[int, Scales]]] = {}
    for row in np.flatnonzero(item.kept(len(ids))).tolist():
        views = records.use(row, lambda record, _: whole_views(record, manifest.stored, crop, scales))
        assert views is not None  # faults are errors here
        sized = tuple(views)
        shapes.setdefault(tuple(image.shape for image in sized), []).append((row, sized))
    for members in shapes.values():
        rows = [row for row, _ in members]
        images = zip(*(sized for _, sized in members), strict=True)
        block: Block = {column(scale): np.stack(part) for scale, part in zip(scales, images, strict=True)}
        yield {**block, "label": labels[rows], "id": ids[rows]}
