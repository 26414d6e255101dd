"""Manifest → plan → Ray Data → streaming_split → workers: one execution for the whole run.

Train builds the stream anew whenever it starts a worker group, through `IngestConfig.configure`: what the newest
committed ledger leaves of the plan. The stream itself says at which step it begins (`base`), so that workers load just
that checkpoint. `streaming_split(equal=True)` gives every worker the same number of rows by dropping a tail that does
not divide; filler rows (id -1) take the tail's place, so no sample is ever dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.data
import ray.train

from infra.storage import open_store
from pipelines.checkpoint import RunFolder
from pipelines.data.decode import CropConfig
from pipelines.data.ledger import Ledger
from pipelines.data.manifest import Manifest
from pipelines.data.plan import Plan, Sizes, WorkItem, plan_items, rows_within
from pipelines.data.quiet import quiet
from pipelines.data.task import Block, TaskConfig, load_item

FILLER = -1
"""Id and epoch of a row that is no sample."""
_BLOCK_BYTES = 4 * 2**20
_PLAN_ROWS = 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """Everything that decides what the workers of a run receive."""

    manifest: Manifest
    data_uri: str
    run_uri: str
    crop: CropConfig
    sizes: Sizes
    split: str
    seed: int
    total_samples: int  # of the whole run; each is one row, however many views of it are trained on
    task_mb: int
    ordered: bool

    @property
    def plan(self) -> Plan:
        largest = max(size for _, size in self.sizes)
        return Plan(
            manifest=self.manifest,
            split=self.split,
            seed=self.seed,
            total_samples=self.total_samples,
            item_rows=rows_within(self.task_mb * 2**20 // self.crop.repeats, largest, least=64, most=8192),
            sizes=self.sizes,
        )


class IngestConfig(ray.train.DataConfig):
    """Builds the rest of the stream for a worker group that starts."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(datasets_to_split=["train"])
        self._stream = stream

    def configure(
        self, datasets: Any, world_size: int, worker_handles: Any, worker_node_ids: Any, **_: Any
    ) -> list[dict[str, Any]]:
        dataset = remaining(self._stream, world_size)
        hints = None if self._stream.ordered else worker_node_ids
        return [{"train": part} for part in dataset.streaming_split(world_size, equal=True, locality_hints=hints)]


def remaining(stream: Stream, world_size: int) -> ray.data.Dataset:
    """What the newest committed checkpoint of the run leaves of its plan."""
    newest = RunFolder(open_store(stream.run_uri)).newest(logger.warning)
    if newest is None:
        return build_dataset(stream, 0, Ledger(stream.manifest.splits[stream.split]), world_size)
    return build_dataset(stream, newest.step, Ledger.from_arrays(newest.ledger), world_size)


def build_dataset(stream: Stream, base: int, ledger: Ledger, world_size: int) -> ray.data.Dataset:
    """The rows that `ledger` leaves, as a lazy dataset; every worker gets at least one row, if only a filler."""
    rest = stream.total_samples - ledger.total
    filler = -rest % world_size if rest >= world_size else world_size - rest

    def plan(_: Any) -> Iterator[dict[str, Any]]:
        rows = [item.to_row() for item in plan_items(stream.plan, ledger)]
        if filler:
            rows.append(_filler_item(filler, stream.sizes[-1][1]).to_row())
        for begin in range(0, len(rows), _PLAN_ROWS):
            part = rows[begin : begin + _PLAN_ROWS]
            yield {key: [row[key] for row in part] for key in part[0]}

    def load(batch: dict[str, Any]) -> Iterator[Block]:
        for place in range(len(batch["rows"])):
            item = WorkItem.from_row({key: column[place] for key, column in batch.items()})
            for block in _load(stream, item):
                yield {**block, "base": np.full(len(block["id"]), base, dtype=np.int64)}

    dataset = (
        ray.data.from_items([{"run": 0}], override_num_blocks=1)
        .map_batches(plan, batch_size=None, num_cpus=0)
        .repartition(target_num_rows_per_block=1)  # one item, one task
        .map_batches(load, batch_size=None, num_cpus=1)
    )
    context = dataset.context
    context.target_max_block_size = _BLOCK_BYTES
    context.raise_original_map_exception = True
    context.execution_options = ray.data.ExecutionOptions(preserve_order=stream.ordered)
    return quiet(dataset)


def _load(stream: Stream, item: WorkItem) -> Iterator[Block]:
    images = rows_within(_BLOCK_BYTES, item.image_size, least=16, most=1024)
    rows = max(1, images // stream.crop.repeats)
    config = TaskConfig(crop=stream.crop, train=True, seed=stream.seed, rows_per_block=rows)
    if not item.pieces:
        yield _filler_block(item.rows, config.image_shape(item.image_size))
        return
    yield from load_item(open_store(stream.data_uri), stream.manifest, item, config)


def _filler_item(rows: int, image_size: int) -> WorkItem:
    return WorkItem(epoch=FILLER, pieces=(), rows=rows, image_size=image_size)


def _filler_block(rows: int, image_shape: tuple[int, ...]) -> Block:
    return {
        "image": np.zeros((rows, *image_shape), dtype=np.uint8),
        "label": np.zeros(rows, dtype=np.int64),
        "id": np.full(rows, FILLER, dtype=np.int64),
        "epoch": np.full(rows, FILLER, dtype=np.int32),
    }
