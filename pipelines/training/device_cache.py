"""A data set in the memory of every worker's device: it is read once, then each batch is a selection of its rows.

Ray Data is not used. A step takes the next rows of the plan, and each rank takes a consecutive part of them. Every rank
computes its part without messages, so a run resumes exactly where its ledger says, with any number of workers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infra.errors import UserError
from infra.storage import open_store
from pipelines.checkpoint import RunFolder
from pipelines.data.images.pillow import raw_pixels
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import FILLER, Drawn, eval_items, plan_items
from pipelines.data.shards.reader import Reader
from pipelines.data.shards.stored_images import StoredImages, no_labels
from pipelines.data.shards.work_item import WorkItem
from pipelines.data.tasks.crops import TaskConfig
from pipelines.data.tasks.encoded import sampler
from pipelines.data.tasks.timing import StageClock
from pipelines.training.batches import Rows, Steps
from pipelines.training.stream import Stream

_LOAD_BYTES = 32 * 2**20  # host memory of the part that is copied to the device at once
_FREE_FRACTION = 0.5  # of a GPU's free memory; the network needs the rest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceCache:
    """A split on a device, in the order of its ids."""

    images_NHWC: Tensor  # uint8, on the device
    labels: npt.NDArray[np.int64] | npt.NDArray[np.uint8]  # as in `StoredImages`
    first_id: int


def load_device_cache(stream: Stream, device: torch.device) -> DeviceCache:
    """Read and verify a split of raw pixels, and copy it to the device.

    Raises:
        UserError: the split does not fit into the device's memory, or its shards are missing or damaged.
    """
    manifest, stored = stream.manifest, stream.manifest.stored
    count, shape = manifest.splits[stream.split], (stored.size, stored.size, stored.channels)
    _check_memory(int(np.prod(shape)) * count, device)
    images = torch.empty((count, *shape), dtype=torch.uint8, device=device)
    labels = no_labels(count, manifest)
    rows = max(1, _LOAD_BYTES // int(np.prod(shape)))
    items = eval_items(manifest, stream.split, 0, 1, image_size=stored.size, item_rows=rows)
    reader = Reader(store=open_store(stream.data_uri), manifest=manifest)
    first_id = manifest.split_start(stream.split)
    for item, fetched in reader.ahead(items):
        records = StoredImages(fetched.result(), manifest, tolerant=False)
        kept = np.flatnonzero(item.kept(len(records.ids)))
        pixels = [records.use(row, lambda record, _: raw_pixels(record, stored)) for row in kept.tolist()]
        place = slice(begin := int(records.ids[kept[0]]) - first_id, begin + len(kept))
        images[place] = torch.from_numpy(np.stack([each for each in pixels if each is not None])).to(device)
        labels[place] = records.labels[kept]
    return DeviceCache(images_NHWC=images, labels=labels, first_id=first_id)


def _check_memory(needed: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free * _FREE_FRACTION:
        raise UserError(
            f"data.device_cache needs {needed / 2**30:.1f} GiB on each device, and may take at most half of its free "
            f"memory, {free * _FREE_FRACTION / 2**30:.1f} GiB: prepare smaller images, or set data.device_cache=false"
        )


def device_cache_blocks(stream: Stream, cache: DeviceCache, steps: Steps, rank: int) -> Iterator[Rows]:
    """Yield one rank's blocks for `RankBatches`, after the newest checkpoint: one or a few for each step.

    The columns are those of `load_undecoded`, with place int64 [n] instead of images: their indices in `cache`.
    """
    newest = RunFolder(open_store(stream.run_uri)).newest(logger.warning)
    ledger = Ledger.from_arrays(newest.ledger) if newest else Ledger(len(cache.labels))
    base = newest.step if newest else 0
    rest = stream.total_samples - ledger.total
    if not rest:
        yield _filler(stream, base)
    step_rows, last, done = steps.global_batch_size // steps.repeats, steps.total_steps - 1 - base, 0
    for item, drawn in _ordered(stream, ledger):
        begin, end = done, done + len(drawn.row)
        while done < end:
            step = min(done // step_rows, last)
            first, rows = step * step_rows, step_rows if step < last else rest - last * step_rows
            if step < last:
                low, high = (
                    first + sum(steps.rows(place, step) for place in range(ranks)) for ranks in (rank, rank + 1)
                )
            else:
                low, high = (first + place * rows // steps.world_size for place in (rank, rank + 1))
            stop = min(end, first + rows)
            own = drawn.part(max(low, done) - begin, max(min(high, stop) - begin, 0))
            if len(own.row):
                yield _block(stream, cache, item, own, base)
            done = stop


def _ordered(stream: Stream, ledger: Ledger) -> Iterator[tuple[WorkItem, Drawn]]:
    """Yield the work items that the ledger leaves of the plan, with their samples in the order of a data task.

    `Drawn.row` has ids here.
    """
    manifest = stream.manifest
    shard, group, rows = manifest.columns.groups_of(stream.split)
    ends = np.cumsum(rows, dtype=np.int64) + manifest.split_start(stream.split)
    ids_of = {
        (int(s), int(g)): np.arange(end - count, end) for s, g, count, end in zip(shard, group, rows, ends, strict=True)
    }
    for item in plan_items(stream.plan, ledger):
        ids = np.concatenate([ids_of[piece] for piece in item.pieces])
        drawn = Drawn.of(item, ids, stream.seed)
        yield item, replace(drawn, row=ids[drawn.row])


def _block(stream: Stream, cache: DeviceCache, item: WorkItem, drawn: Drawn, base: int) -> Rows:
    ids = drawn.row
    clock, count, side = StageClock(), len(ids), stream.manifest.stored.size
    config = TaskConfig(crop=stream.crop, train=True, seed=stream.seed, rows_per_block=count)
    windows_of, places = sampler(item, config), ids - cache.first_id
    return {
        "place": places,
        "window": np.stack(
            [windows_of(side, side, *each) for each in zip(ids.tolist(), drawn.copy.tolist(), strict=True)]
        ),
        **_columns(count, size=item.image_size, epoch=item.epoch, base=base),
        "label": cache.labels[places],
        "id": ids,
        "draw": drawn.draw,
        **clock.columns(count),
    }


def _filler(stream: Stream, base: int) -> Rows:
    """Return a filler row; its `base` column is the last step of a finished run."""
    nothing = np.zeros(1, dtype=np.int64)
    columns = {**_columns(1, size=1, epoch=FILLER, base=base), **StageClock().columns(1)}
    windows, label = np.zeros((1, stream.crop.repeats * 8)), no_labels(1, stream.manifest)
    filler = {"id": nothing + FILLER, "draw": nothing + FILLER}
    return {"place": nothing, "window": windows, **columns, "label": label, **filler}


def _columns(count: int, *, size: int, epoch: int, base: int) -> dict[str, npt.NDArray[Any]]:
    values = {"size": size, "epoch": epoch, "base": base}
    return {name: np.full(count, value, dtype=np.int64) for name, value in values.items()} | {
        "bad": np.full(count, "", dtype=object),
        "warning": np.full(count, "", dtype=object),
    }
