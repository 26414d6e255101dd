"""What a data task runs where workers decode and crop on their device: records as they are stored, and their windows.

Imports no torch. What each column of a block is for, `pipelines.device_images` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipelines.data.decode import MAX_PIXELS, Record, open_record, raw_pixels
from pipelines.data.jpeg import read_header
from pipelines.data.manifest import Manifest, Stored
from pipelines.data.plan import WorkItem, item_order
from pipelines.data.rng import Purpose, generator
from pipelines.data.stages import StageClock
from pipelines.data.task import Block, TaskConfig, fetch_records
from pipelines.data.windows import Window, train_window

if TYPE_CHECKING:
    from concurrent.futures import Future

    from infra.storage import Store
    from pipelines.data.read import Fetched

DecodeOn = Literal["host", "device"]
"""Who makes a training image of a record: a data task, or a worker on its device."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A stored image that is sent on as it is, or, where only the host can read it, as its RGB pixels."""

    data: Record
    width: int
    height: int
    coded: bool  # whether `data` is a JPEG


def load_undecoded(
    store: Store,
    manifest: Manifest,
    item: WorkItem,
    config: TaskConfig,
    clock: StageClock | None = None,
    ahead: Future[Fetched] | None = None,
) -> Iterator[Block]:
    """Fetch and verify an item, and draw the crops of its samples from the same streams as `load_item` does.

    Yields:
        Blocks as `load_item`'s, with other images: image uint8 [n,H,W,C] of raw pixels; or image object [n] of bytes,
        width, height int32 [n] and coded bool [n]. window float64 [n, r * 8] has the windows of r views of each sample
        (`pipelines.data.windows`), and size int32 [n] the side of the crops, the same in all rows.

    Raises:
        UserError: a shard is missing (IntegrityError: differs from the manifest).
        BadSample: a header cannot be read, or a label is no class.
    """
    records = fetch_records(store, manifest, item, config, clock, ahead)
    order = item_order(config.seed, item.epoch, records.ids)
    order = order[item.kept(len(order))[order]]
    windows_of = sampler(item, config)
    for begin in range(0, len(order), config.rows_per_block):
        rows = order[begin : begin + config.rows_per_block]
        pictures = [
            records.use(row, lambda record, _: look(record, manifest.stored)) or _nothing(manifest.stored)
            for row in rows.tolist()
        ]
        ids = records.ids[rows]
        yield {
            **_columns(pictures, manifest.stored),
            "window": np.stack([windows_of(p.width, p.height, int(i)) for p, i in zip(pictures, ids, strict=True)]),
            "size": np.full(len(rows), item.image_size, dtype=np.int32),
            "label": records.labels[rows],
            "id": ids,
            "epoch": np.full(len(rows), item.epoch, dtype=np.int32),
            "bad": records.bad(rows),
        }


def sampler(item: WorkItem, config: TaskConfig) -> Callable[[int, int, int], Window]:
    """From width, height and id of a sample to the windows of all its views, flat.

    They come from the sample's own random streams, as the crops of `load_item` do.
    """
    crop = config.crop.at(item.image_size)
    first = item.epoch * crop.repeats  # how often each sample was shown before

    def windows_of(width: int, height: int, sample_id: int) -> Window:
        streams = (generator(config.seed, Purpose.CROP, first + view, sample_id) for view in range(crop.repeats))
        return np.concatenate([train_window(width, height, crop, rng).ravel() for rng in streams])

    return windows_of


def look(record: Record, stored: Stored) -> Picture:
    """A record by its header alone; only what a JPEG decoder of a device may not know is decoded.

    Raises:
        DecodeError: not an image of the stored form, or more than `MAX_PIXELS`.
    """
    if stored.form == "raw":
        raw_pixels(record, stored)
        return Picture(record, stored.size, stored.size, coded=False)
    header = read_header(record)
    if header is not None and header.width * header.height <= MAX_PIXELS:
        return Picture(record, header.width, header.height, coded=True)
    picture = open_record(record, stored)
    return Picture(picture.tobytes(), picture.width, picture.height, coded=False)


def filler_columns(rows: int, manifest: Manifest, config: TaskConfig, image_size: int) -> Block:
    """The columns of rows that are no samples."""
    return {
        **_columns([_blank(manifest.stored)] * rows, manifest.stored),
        "window": np.zeros((rows, config.crop.repeats * 8)),
        "size": np.full(rows, image_size, dtype=np.int32),
    }


def _blank(stored: Stored) -> Picture:
    """In the place of an image that nobody may use."""
    side, channels = (stored.size, stored.channels) if stored.form == "raw" else (1, 3)
    return Picture(bytes(side * side * channels), side, side, coded=False)


def _nothing(stored: Stored) -> Picture:
    """In place of what is thrown away unseen."""
    raw = stored.form == "raw"
    return Picture(bytes(stored.size * stored.size * stored.channels if raw else 0), 1, 1, coded=False)


def _columns(pictures: list[Picture], stored: Stored) -> Block:
    if stored.form == "raw":
        shape = (len(pictures), stored.size, stored.size, stored.channels)
        pixels = b"".join(picture.data for picture in pictures)
        return {"image": np.frombuffer(pixels, dtype=np.uint8).reshape(shape)}
    records = np.empty(len(pictures), dtype=object)
    records[:] = [bytes(picture.data) for picture in pictures]
    return {
        "image": records,
        "width": np.array([picture.width for picture in pictures], dtype=np.int32),
        "height": np.array([picture.height for picture in pictures], dtype=np.int32),
        "coded": np.array([picture.coded for picture in pictures]),
    }
