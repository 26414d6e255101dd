"""What a data task runs: one work item in, blocks of uint8 images out.

Imports no torch, so that a task starts fast, unless the recipe names a policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from pipelines.data.decode import CropConfig, DecodeError, eval_crop, train_crop
from pipelines.data.manifest import Manifest
from pipelines.data.plan import WorkItem, item_order
from pipelines.data.read import open_record, read_rows
from pipelines.data.rng import Purpose, generator

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

    from infra.storage import Store

_FETCH_THREADS = 8  # row groups of one item fetched at once: object storage answers slowly but many at a time

Block = dict[str, npt.NDArray[np.generic]]
Pixels = npt.NDArray[np.uint8]
Crop = Callable[["Image.Image", int], Pixels]


class BadSample(UserError):
    """A stored image does not decode. None is tolerated, and none is skipped silently."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """How items become blocks."""

    crop: CropConfig
    train: bool  # shuffled and cropped at random; else in id order and by the evaluation crop
    seed: int
    rows_per_block: int

    def image_shape(self, size: int) -> tuple[int, ...]:
        """Of what one sample becomes: one view, or several."""
        view = (size, size, 3)
        return (self.crop.repeats, *view) if self.train and self.crop.repeats > 1 else view


def load_item(store: Store, manifest: Manifest, item: WorkItem, config: TaskConfig) -> Iterator[Block]:
    """Fetch, verify, decode and crop an item.

    The result depends on the arguments alone, not on which task runs it, or when.

    Yields:
        Blocks of at most `rows_per_block` rows: image uint8 [n,S,S,3], label int64 [n], id int64 [n], epoch int32 [n].
        In training with r > 1 repeats, image has r views of each sample: [n,r,S,S,3].

    Raises:
        UserError: a shard is missing (IntegrityError: differs from the manifest).
        BadSample: an image does not decode.
    """
    table = fetch_item(store, manifest, item)
    ids, labels = table["id"].to_numpy(), table["label"].to_numpy().astype(np.int64)
    order = item_order(config.seed, item.epoch, ids) if config.train else np.arange(len(ids))
    order = order[item.kept(len(ids))[order]]
    crop = _cropper(item, config)
    for begin in range(0, len(order), config.rows_per_block):
        rows = order[begin : begin + config.rows_per_block]
        images = np.empty((len(rows), *config.image_shape(item.image_size)), dtype=np.uint8)
        for place, row in enumerate(rows.tolist()):
            try:
                picture = open_record(table["image"][row].as_py(), manifest.stored)
            except DecodeError as error:
                raise bad_sample(manifest, table, row, error) from error
            images[place] = crop(picture, int(ids[row]))
        epochs = np.full(len(rows), item.epoch, dtype=np.int32)
        yield {"image": images, "label": labels[rows], "id": ids[rows], "epoch": epochs}


def fetch_item(store: Store, manifest: Manifest, item: WorkItem) -> pa.Table:
    """All rows of an item's pieces, in the order of the pieces."""
    import pyarrow as pa

    def read(piece: tuple[int, int]) -> pa.Table:
        shard, group = piece
        return read_rows(store, manifest.shards[shard], [group])

    with ThreadPoolExecutor(max_workers=min(_FETCH_THREADS, len(item.pieces))) as pool:
        return pa.concat_tables(pool.map(read, item.pieces))


def _cropper(item: WorkItem, config: TaskConfig) -> Crop:
    """The crop of a sample; in training by the sample's own random stream, whatever the order of reading."""
    crop = config.crop.at(item.image_size)
    if not config.train:
        return lambda image, _: eval_crop(image, crop)
    change = _policy(crop)

    def views(image: Image.Image, sample_id: int) -> Pixels:
        first = item.epoch * crop.repeats  # how often the sample was shown before
        streams = (generator(config.seed, Purpose.CROP, first + view, sample_id) for view in range(crop.repeats))
        shown = [change(train_crop(image, crop, rng), rng) for rng in streams]
        return np.stack(shown) if crop.repeats > 1 else shown[0]

    return views


def _policy(crop: CropConfig) -> Callable[[Pixels, np.random.Generator], Pixels]:
    """What happens to a crop; it draws on from the stream that drew the crop."""
    if not crop.policy:
        return lambda pixels, _: pixels
    from pipelines.data.policies import build_policy

    return build_policy(crop)


def bad_sample(manifest: Manifest, table: pa.Table, row: int, reason: DecodeError) -> BadSample:
    sample_id, key = table["id"][row].as_py(), table["key"][row].as_py()
    ends = np.cumsum([shard.rows for shard in manifest.shards])
    shard = manifest.shards[int(np.searchsorted(ends, sample_id, side="right"))]
    return BadSample(f"sample {sample_id} ({key}) of shard {shard.path} does not decode: {reason}")
