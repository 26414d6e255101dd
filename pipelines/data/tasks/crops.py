"""The work of a data task: read one work item and yield blocks of uint8 images.

Imports torch only if the recipe names a policy, so that other tasks start fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from pipelines.config.crop import CropConfig
from pipelines.config.sections import CacheConfig
from pipelines.data.images.crops import eval_view, train_views, whole_views
from pipelines.data.images.pillow import EncodedImage
from pipelines.data.images.stored import Stored
from pipelines.data.order.plan import Drawn
from pipelines.data.order.rng import Purpose, generator
from pipelines.data.shards.disk_cache import open_cache
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.reader import FetchedRows, Reader
from pipelines.data.shards.stored_images import StoredImages
from pipelines.data.shards.work_item import WorkItem
from pipelines.data.tasks.timing import StageClock

if TYPE_CHECKING:
    from concurrent.futures import Future

    from infra.storage import Store

Block = dict[str, npt.NDArray[np.generic]]
Pixels = npt.NDArray[np.uint8]


class Crop(Protocol):
    """Function that makes the crops of a sample; `copy` counts the repetitions of the image in its epoch."""

    def __call__(self, encoded: EncodedImage, sample_id: int, *, copy: int) -> Pixels:
        """Return the crops, of the shape `TaskConfig.image_shape`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """Settings for turning work items into blocks."""

    crop: CropConfig
    train: bool  # True: shuffled, random crops; False: in id order, evaluation crop
    seed: int
    rows_per_block: int
    tolerant: bool = False  # True: a bad record becomes zeros with a note in the column `bad`; False: it is an error
    cache: CacheConfig | None = None

    def image_shape(self, size: int) -> tuple[int, ...]:
        """Return the shape of one sample: [S,S,3], or [r,S,S,3] in training with r > 1 repeats."""
        single = (size, size, 3)
        return (self.crop.repeats, *single) if self.train and self.crop.repeats > 1 else single


def load_item(
    store: Store,
    manifest: Manifest,
    item: WorkItem,
    config: TaskConfig,
    clock: StageClock | None = None,
    ahead: Future[FetchedRows] | None = None,
) -> Iterator[Block]:
    """Fetch, verify, decode and crop an item.

    The result depends on the arguments alone, not on the task or the time. `clock` measures the time of reading.
    `ahead` has the item's rows if a fetch of them has started already.

    Yields:
        Blocks of at most `rows_per_block` rows: image uint8 [n,S,S,3], label int64 [n], id int64 [n], epoch int32 [n],
        draw int64 [n] (`Drawn.draw`).
        label is uint8 [n,classes] if the data set is multi-label: 1 for each class of the image.
        In training with r > 1 repeats, image has r crops per sample: [n,r,S,S,3]. bad object [n]: "" for a good row,
        else the fault (`bad_records.Fault.note`) of a row whose image is zeros.

    Raises:
        UserError: a shard is missing (IntegrityError: differs from the manifest).
        BadSample: an image does not decode, or its label is not a class. Only if `config.tolerant` is False.
    """
    stored_images = fetch_records(store, manifest, item, config, clock, ahead)
    ids, labels = stored_images.ids, stored_images.labels
    drawn = Drawn.of(item, ids, config.seed, shuffled=config.train)
    crop = _cropper(item, config, manifest.stored)
    for begin in range(0, len(drawn.row), config.rows_per_block):
        part = slice(begin, begin + config.rows_per_block)
        rows = drawn.row[part]
        images = np.empty((len(rows), *config.image_shape(item.image_size)), dtype=np.uint8)
        for place, (row, copy) in enumerate(zip(rows.tolist(), drawn.copy[part].tolist(), strict=True)):
            pixels = stored_images.use(row, partial(crop, copy=copy))
            images[place] = 0 if pixels is None else pixels
        yield {
            "image": images,
            "label": labels[rows],
            "id": ids[rows],
            "draw": drawn.draw[part],
            "epoch": np.full(len(rows), item.epoch, dtype=np.int32),
            "bad": stored_images.bad(rows),
        }


def fetch_records(
    store: Store,
    manifest: Manifest,
    item: WorkItem,
    config: TaskConfig,
    clock: StageClock | None = None,
    ahead: Future[FetchedRows] | None = None,
) -> StoredImages:
    """Fetch the stored images of an item. The arguments are those of `load_item`."""
    with (clock or StageClock()).reading():
        if ahead is None:
            cache = open_cache(config.cache) if config.cache else None
            fetched = Reader(store=store, manifest=manifest, cache=cache, tolerant=config.tolerant).fetch(item)
        else:
            fetched = ahead.result()
    return StoredImages(fetched, manifest, tolerant=config.tolerant)


def _cropper(item: WorkItem, config: TaskConfig, stored: Stored) -> Crop:
    """Return the function that crops a sample.

    Training crops come from the sample's own random stream, so the order of reading does not change them.
    """
    crop = config.crop.at(item.image_size)
    if not config.train:
        return lambda encoded, sample_id, *, copy: eval_view(encoded, stored, crop)
    change = _policy(crop)

    def crops(encoded: EncodedImage, sample_id: int, *, copy: int) -> Pixels:
        first = item.epoch * crop.repeats  # crops of the sample in earlier epochs
        streams = [
            generator(config.seed, Purpose.CROP, first + repeat, sample_id, copy) for repeat in range(crop.repeats)
        ]
        cropped = train_views(encoded, stored, crop, streams)
        changed = [change(pixels, rng) for pixels, rng in zip(cropped, streams, strict=True)]
        return np.stack(changed) if crop.repeats > 1 else changed[0]

    return crops


def _policy(crop: CropConfig) -> Callable[[Pixels, np.random.Generator], Pixels]:
    """Return the augmentation policy of a crop. It draws from the same stream as the crop, after it."""
    if not crop.policy:
        return lambda pixels, _: pixels
    from pipelines.data.images.policies import build_policy

    return build_policy(crop)


Scales = tuple[npt.NDArray[np.uint8], ...]
"""One image at every scale, uint8 H x W x 3 each."""


def column(scale: int) -> str:
    """Return the name of the block's column with images whose shorter side is `scale` pixels."""
    return f"image_{scale}"


def load_whole(
    store: Store, manifest: Manifest, item: WorkItem, scales: Sequence[int], crop: CropConfig
) -> Iterator[Block]:
    """Fetch, verify, decode and resize an item: the shorter side to each of `scales`, in pixels.

    Only `decoder` and `interpolation` of `crop` are used. Images of different shapes are not padded: each shape gets a
    separate block.

    Yields:
        Blocks: `column(scale)` uint8 [n,H,W,3] for every scale, label and id as in `load_item`.

    Raises:
        UserError: a shard is missing (IntegrityError: differs from the manifest).
        BadSample: an image does not decode, or its label is not a class.
    """
    stored_images = StoredImages(Reader(store=store, manifest=manifest).fetch(item), manifest, tolerant=False)
    ids, labels = stored_images.ids, stored_images.labels
    shapes: dict[tuple[tuple[int, ...], ...], list[tuple[int, Scales]]] = {}
    for row in np.flatnonzero(item.kept(len(ids))).tolist():
        resized = stored_images.use(row, lambda encoded, _: whole_views(encoded, manifest.stored, crop, scales))
        assert resized is not None  # faults are errors here
        sized = tuple(resized)
        shapes.setdefault(tuple(image.shape for image in sized), []).append((row, sized))
    for members in shapes.values():
        rows = [row for row, _ in members]
        images = zip(*(sized for _, sized in members), strict=True)
        block: Block = {column(scale): np.stack(part) for scale, part in zip(scales, images, strict=True)}
        yield {**block, "label": labels[rows], "id": ids[rows]}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSum:
    """Sum over images of one size. Sums of several tasks can be added."""

    total: npt.NDArray[np.uint64]  # [S,S,3]
    count: int  # images

    @classmethod
    def of(cls, blocks: Iterable[Block], size: int) -> ImageSum:
        """Sum all images of blocks with S = `size`, such as those of `load_item` with the evaluation crop."""
        sums = (cls(total=block["image"].sum(axis=0, dtype=np.uint64), count=len(block["image"])) for block in blocks)
        return sum(sums, start=cls(total=np.zeros((size, size, 3), dtype=np.uint64), count=0))

    def __add__(self, other: ImageSum) -> ImageSum:
        return ImageSum(total=self.total + other.total, count=self.count + other.count)

    def mean(self) -> npt.NDArray[np.float32]:
        """Return the mean image, [S,S,3] in [0, 1]."""
        return (self.total / (255 * self.count)).astype(np.float32)
