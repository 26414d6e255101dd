"""A data set that lives in the memory of every worker's device: read once, then each batch is a choice of rows.

No Ray Data then. The order is the plan's: step by step, its next rows, a consecutive part of them for each rank. So all
ranks know by themselves what is whose, and a run goes on exactly where its ledger says, with any number of workers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infra.errors import UserError
from infra.storage import open_store
from pipelines.checkpoint import RunFolder
from pipelines.data.decode import raw_pixels
from pipelines.data.ingest import Stream
from pipelines.data.ledger import Ledger
from pipelines.data.plan import FILLER, WorkItem, eval_items, item_order, plan_items
from pipelines.data.read import Reader
from pipelines.data.records import Records
from pipelines.data.stages import StageClock
from pipelines.data.task import TaskConfig
from pipelines.data.undecoded import sampler
from pipelines.feed import Rows, Steps

_LOAD_BYTES = 32 * 2**20  # of the host's memory that one part takes on its way to the device
_SHARE_OF_FREE = 0.5  # of a GPU's memory; the rest is the network's

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resident:
    """A split, in the order of its ids."""

    images_NHWC: Tensor  # uint8, on the device
    labels: npt.NDArray[np.int64]
    first_id: int


def load_resident(stream: Stream, device: torch.device) -> Resident:
    """Read and verify a split of raw pixels, and put it on the device.

    Raises:
        UserError: it does not fit, or its shards are missing or damaged.
    """
    manifest, stored = stream.manifest, stream.manifest.stored
    count, shape = manifest.splits[stream.split], (stored.size, stored.size, stored.channels)
    _check_room(int(np.prod(shape)) * count, device)
    images = torch.empty((count, *shape), dtype=torch.uint8, device=device)
    labels = np.empty(count, dtype=np.int64)
    rows = max(1, _LOAD_BYTES // int(np.prod(shape)))
    items = eval_items(manifest, stream.split, 0, 1, image_size=stored.size, item_rows=rows)
    reader = Reader(store=open_store(stream.data_uri), manifest=manifest)
    first_id = manifest.split_start(stream.split)
    for item, fetched in reader.ahead(items):
        records = Records(fetched.result(), manifest, tolerant=False)
        kept = np.flatnonzero(item.kept(len(records.ids)))
        pixels = [records.use(row, lambda record, _: raw_pixels(record, stored)) for row in kept.tolist()]
        place = slice(begin := int(records.ids[kept[0]]) - first_id, begin + len(kept))
        images[place] = torch.from_numpy(np.stack([each for each in pixels if each is not None])).to(device)
        labels[place] = records.labels[kept]
    return Resident(images_NHWC=images, labels=labels, first_id=first_id)


def _check_room(needed: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free * _SHARE_OF_FREE:
        raise UserError(
            f"data.device_cache needs {needed / 2**30:.1f} GiB on each device, and half of what is free is "
            f"{free * _SHARE_OF_FREE / 2**30:.1f} GiB: prepare smaller pictures, or leave it out"
        )


def resident_blocks(stream: Stream, resident: Resident, steps: Steps, rank: int) -> Iterator[Rows]:
    """The blocks of one rank for a `Feed`, from the newest checkpoint on: for each step, one or a few.

    Columns as of `load_undecoded`, but for the images: place int64 [n] is where in `resident` they are.
    """
    newest = RunFolder(open_store(stream.run_uri)).newest(logger.warning)
    ledger = Ledger.from_arrays(newest.ledger) if newest else Ledger(len(resident.labels))
    base = newest.step if newest else 0
    rest = stream.total_samples - ledger.total
    if not rest:
        yield _filler(base, stream.crop.repeats)
    step_rows, last, done = steps.global_batch_size // steps.repeats, steps.total_steps - 1 - base, 0
    for item, ids in _ordered(stream, ledger):
        begin, end = done, done + len(ids)
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
            own = ids[max(low, done) - begin : max(min(high, stop) - begin, 0)]
            if len(own):
                yield _block(stream, resident, item, own, base)
            done = stop


def _ordered(stream: Stream, ledger: Ledger) -> Iterator[tuple[WorkItem, npt.NDArray[np.int64]]]:
    """The items that the ledger leaves of the plan, with their ids in the order in which a data task yields them."""
    manifest = stream.manifest
    shard, group, rows = manifest.columns.groups_of(stream.split)
    ends = np.cumsum(rows, dtype=np.int64) + manifest.split_start(stream.split)
    ids_of = {
        (int(s), int(g)): np.arange(end - count, end) for s, g, count, end in zip(shard, group, rows, ends, strict=True)
    }
    for item in plan_items(stream.plan, ledger):
        ids = np.concatenate([ids_of[piece] for piece in item.pieces])
        order = item_order(stream.seed, item.epoch, ids)
        yield item, ids[order[item.kept(len(ids))[order]]]


def _block(stream: Stream, resident: Resident, item: WorkItem, ids: npt.NDArray[np.int64], base: int) -> Rows:
    clock, count, side = StageClock(), len(ids), stream.manifest.stored.size
    config = TaskConfig(crop=stream.crop, train=True, seed=stream.seed, rows_per_block=count)
    windows_of, places = sampler(item, config), ids - resident.first_id
    return {
        "place": places,
        "window": np.stack([windows_of(side, side, sample_id) for sample_id in ids.tolist()]),
        **_columns(count, size=item.image_size, epoch=item.epoch, base=base),
        "label": resident.labels[places],
        "id": ids,
        **clock.columns(count),
    }


def _filler(base: int, repeats: int) -> Rows:
    """A row that says where a finished run stands."""
    nothing = np.zeros(1, dtype=np.int64)
    columns = {**_columns(1, size=1, epoch=FILLER, base=base), **StageClock().columns(1)}
    return {"place": nothing, "window": np.zeros((1, repeats * 8)), **columns, "label": nothing, "id": nothing + FILLER}


def _columns(count: int, *, size: int, epoch: int, base: int) -> dict[str, npt.NDArray[Any]]:
    values = {"size": size, "epoch": epoch, "base": base}
    return {name: np.full(count, value, dtype=np.int64) for name, value in values.items()} | {
        "bad": np.full(count, "", dtype=object),
        "warning": np.full(count, "", dtype=object),
    }
