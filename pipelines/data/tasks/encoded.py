"""The work of a data task if workers decode and crop on their device: yield encoded images and crop windows.

Imports no torch. `pipelines.training.device_decode` uses the columns of these blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.config.crop import MAX_PIXELS
from pipelines.data.images.crop_boxes import Window, train_window
from pipelines.data.images.display import Display, display_of_jpeg
from pipelines.data.images.jpeg import JpegHeader, read_header
from pipelines.data.images.pillow import EncodedImage, open_record, raw_pixels
from pipelines.data.images.stored import Stored
from pipelines.data.order.plan import Drawn
from pipelines.data.order.rng import Purpose, generator
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.work_item import WorkItem
from pipelines.data.tasks.crops import Block, TaskConfig, fetch_records
from pipelines.data.tasks.timing import StageClock

if TYPE_CHECKING:
    from concurrent.futures import Future

    from infra.storage import Store
    from pipelines.data.shards.reader import FetchedRows


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A stored image as it goes to a worker: unchanged, or as RGB pixels if only the host can decode it."""

    data: EncodedImage
    width: int
    height: int
    coded: bool  # True: `data` is a JPEG; False: pixels


def load_undecoded(
    store: Store,
    manifest: Manifest,
    item: WorkItem,
    config: TaskConfig,
    clock: StageClock | None = None,
    ahead: Future[FetchedRows] | None = None,
) -> Iterator[Block]:
    """Fetch and verify an item, and draw the crops of its samples from the same streams as `load_item` does.

    Yields:
        Blocks with the columns label, id, draw, epoch and bad of `load_item`.
        window float64 [n, r * 8]: the windows of the r crops of each sample (`pipelines.data.images.crop_boxes`).
        size int32 [n]: side of the crops, the same in all rows.
        If the data set stores raw pixels, image uint8 [n,H,W,C].
        Otherwise, image object [n] of bytes, width and height int32 [n], coded bool [n] (`EncodedSample`).

    Raises:
        UserError: a shard is missing (IntegrityError: differs from the manifest).
        BadSample: a header cannot be read, or a label is not a class. Only if `config.tolerant` is False.
    """
    stored_images = fetch_records(store, manifest, item, config, clock, ahead)
    drawn = Drawn.of(item, stored_images.ids, config.seed)
    windows_of = sampler(item, config)
    for begin in range(0, len(drawn.row), config.rows_per_block):
        part = slice(begin, begin + config.rows_per_block)
        rows = drawn.row[part]
        samples = [
            stored_images.use(row, lambda encoded, _: look(encoded, manifest.stored)) or _placeholder(manifest.stored)
            for row in rows.tolist()
        ]
        ids = stored_images.ids[rows]
        places = zip(samples, ids.tolist(), drawn.copy[part].tolist(), strict=True)
        yield {
            **_columns(samples, manifest.stored),
            "window": np.stack([windows_of(each.width, each.height, i, copy) for each, i, copy in places]),
            "size": np.full(len(rows), item.image_size, dtype=np.int32),
            "label": stored_images.labels[rows],
            "id": ids,
            "draw": drawn.draw[part],
            "epoch": np.full(len(rows), item.epoch, dtype=np.int32),
            "bad": stored_images.bad(rows),
        }


def sampler(item: WorkItem, config: TaskConfig) -> Callable[[int, int, int, int], Window]:
    """Return a function from a sample's width, height, id and copy to the windows of all its crops, float64 [r * 8].

    The windows come from the sample's own random streams, like the crops of `load_item`.
    """
    crop = config.crop.at(item.image_size)
    first = item.epoch * crop.repeats  # crops of each sample in earlier epochs

    def windows_of(width: int, height: int, sample_id: int, copy: int) -> Window:
        streams = (
            generator(config.seed, Purpose.CROP, first + repeat, sample_id, copy) for repeat in range(crop.repeats)
        )
        return np.concatenate([train_window(width, height, crop, rng).ravel() for rng in streams])

    return windows_of


def look(encoded: EncodedImage, stored: Stored) -> EncodedSample:
    """Read an encoded image's header. Decode only images that a device's JPEG decoder may not support.

    Raises:
        DecodeError: not an image of the stored form, or more than `MAX_PIXELS`.
    """
    if stored.form == "raw":
        raw_pixels(encoded, stored)
        return EncodedSample(encoded, stored.size, stored.size, coded=False)
    header = read_header(encoded)
    if header is not None and header.width * header.height <= MAX_PIXELS and not _changed(encoded, stored, header):
        return EncodedSample(encoded, header.width, header.height, coded=True)
    image = open_record(encoded, stored)
    return EncodedSample(image.tobytes(), image.width, image.height, coded=False)


def _changed(encoded: EncodedImage, stored: Stored, header: JpegHeader) -> bool:
    """Return whether an image is turned, or its colours are converted: a device's decoder does neither."""
    display = display_of_jpeg(encoded) if stored.displayed else Display()
    return display.turns or display.converts("L" if header.grey else "RGB")


def filler_columns(rows: int, manifest: Manifest, config: TaskConfig, image_size: int) -> Block:
    """Return the columns of filler rows, which are not samples."""
    return {
        **_columns([_filler(manifest.stored)] * rows, manifest.stored),
        "window": np.zeros((rows, config.crop.repeats * 8)),
        "size": np.full(rows, image_size, dtype=np.int32),
    }


def _filler(stored: Stored) -> EncodedSample:
    """Return a black image for a filler row."""
    side, channels = (stored.size, stored.channels) if stored.form == "raw" else (1, 3)
    return EncodedSample(bytes(side * side * channels), side, side, coded=False)


def _placeholder(stored: Stored) -> EncodedSample:
    """Return a placeholder for a bad record, which workers discard without decoding it."""
    raw = stored.form == "raw"
    return EncodedSample(bytes(stored.size * stored.size * stored.channels if raw else 0), 1, 1, coded=False)


def _columns(samples: list[EncodedSample], stored: Stored) -> Block:
    if stored.form == "raw":
        shape = (len(samples), stored.size, stored.size, stored.channels)
        pixels = b"".join(sample.data for sample in samples)
        return {"image": np.frombuffer(pixels, dtype=np.uint8).reshape(shape)}
    encoded = np.empty(len(samples), dtype=object)
    encoded[:] = [bytes(sample.data) for sample in samples]
    return {
        "image": encoded,
        "width": np.array([sample.width for sample in samples], dtype=np.int32),
        "height": np.array([sample.height for sample in samples], dtype=np.int32),
        "coded": np.array([sample.coded for sample in samples]),
    }
