"""What a data task runs: one work item in, blocks of uint8 images out.

Imports no torch, so that a task starts fast, unless the recipe names a policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipelines.data.cache import CacheConfig, open_cache
from pipelines.data.decode import CropConfig, Record
from pipelines.data.manifest import Manifest, Stored
from pipelines.data.plan import WorkItem, item_order
from pipelines.data.read import Fetched, Reader
from pipelines.data.records import Records
from pipelines.data.rng import Purpose, generator
from pipelines.data.stages import StageClock
from pipelines.data.views import eval_view, train_views

if TYPE_CHECKING:
    from concurrent.futures import Future

    from infra.storage import Store

Block = dict[str, npt.NDArray[np.generic]]
Pixels = npt.NDArray[np.uint8]
Crop = Callable[[Record, int], Pixels]
"""From a record and its sample's id to what is shown of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """How items become blocks."""

    crop: CropConfig
    train: bool  # shuffled and cropped at random; else in id order and by the evaluation crop
    seed: int
    rows_per_block: int
    tolerant: bool = False  # a bad sample comes as zeros, named in the column `bad`; else it is an error
    cache: CacheConfig | None = None

    def image_shape(self, size: int) -> tuple[int, ...]:
        """Of what one sample becomes: one view, or several."""
        view = (size, size, 3)
        return (self.crop.repeats, *view) if self.train and self.crop.repeats > 1 else view


def load_item(
    store: Store,
    manifest: Manifest,
    item: WorkItem,
    config: TaskConfig,
    clock: StageClock | None = None,
    ahead: Future[Fetched] | None = None,
) -> Iterator[Block]:
    """Fetch, verify, decode and crop an item.

    The result depends on the arguments alone, not on which task runs it, or when. `clock` is told what is reading;
    `ahead` is the item's rows where somebody has begun to fetch them.

    Yields:
        Blocks of at most `rows_per_block` rows: image uint8 [n,S,S,3], label int64 [n], id int64 [n], epoch int32 [n].
        In training with r > 1 repeats, image has r views of each sample: [n,r,S,S,3]. bad object [n]: "", or what is
        wrong with the sample (`quarantine.Fault.note`), whose image is zeros then.

    Raises:
        UserError: a shard is missing (IntegrityError: differs from the manifest).
        BadSample: an image does not decode, or its label is no class.
    """
    records = fetch_records(store, manifest, item, config, clock, ahead)
    ids, labels = records.ids, records.labels
    order = item_order(config.seed, item.epoch, ids) if config.train else np.arange(len(ids))
    order = order[item.kept(len(ids))[order]]
    crop = _cropper(item, config, manifest.stored)
    for begin in range(0, len(order), config.rows_per_block):
        rows = order[begin : begin + config.rows_per_block]
        images = np.empty((len(rows), *config.image_shape(item.image_size)), dtype=np.uint8)
        for place, row in enumerate(rows.tolist()):
            pixels = records.use(row, crop)
            images[place] = 0 if pixels is None else pixels
        epochs = np.full(len(rows), item.epoch, dtype=np.int32)
        yield {"image": images, "label": labels[rows], "id": ids[rows], "epoch": epochs, "bad": records.bad(rows)}


def fetch_records(
    store: Store,
    manifest: Manifest,
    item: WorkItem,
    config: TaskConfig,
    clock: StageClock | None = None,
    ahead: Future[Fetched] | None = None,
) -> Records:
    """The records of an item, as in `load_item`."""
    with (clock or StageClock()).reading():
        if ahead is None:
            cache = open_cache(config.cache) if config.cache else None
            fetched = Reader(store=store, manifest=manifest, cache=cache, tolerant=config.tolerant).fetch(item)
        else:
            fetched = ahead.result()
    return Records(fetched, manifest, tolerant=config.tolerant)


def _cropper(item: WorkItem, config: TaskConfig, stored: Stored) -> Crop:
    """The crop of a sample; in training by the sample's own random stream, whatever the order of reading."""
    crop = config.crop.at(item.image_size)
    if not config.train:
        return lambda record, _: eval_view(record, stored, crop)
    change = _policy(crop)

    def views(record: Record, sample_id: int) -> Pixels:
        first = item.epoch * crop.repeats  # how often the sample was shown before
        streams = [generator(config.seed, Purpose.CROP, first + view, sample_id) for view in range(crop.repeats)]
        cropped = train_views(record, stored, crop, streams)
        shown = [change(view, rng) for view, rng in zip(cropped, streams, strict=True)]
        return np.stack(shown) if crop.repeats > 1 else shown[0]

    return views


def _policy(crop: CropConfig) -> Callable[[Pixels, np.random.Generator], Pixels]:
    """What happens to a crop; it draws on from the stream that drew the crop."""
    if not crop.policy:
        return lambda pixels, _: pixels
    from pipelines.data.policies import build_policy

    return build_policy(crop)
