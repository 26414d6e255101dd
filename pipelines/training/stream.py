"""Manifest → plan → Ray Data → streaming_split → workers: one execution for the whole run.

Train builds a new stream for each worker group, through `IngestConfig.configure`: the rows of the plan that the newest
committed ledger leaves. The rows have the step at which the stream begins (`base`), so that workers load that very
checkpoint. `streaming_split(equal=True)` gives every worker the same number of rows: it drops the rest of the division.
Filler rows (id -1) fill up that rest, so no sample is dropped.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray.data
import ray.train

from infra.capacity import ingest_options
from infra.storage import open_store
from pipelines.checkpoint import RunFolder, Warn
from pipelines.config.crop import CropConfig, DecodeOn
from pipelines.config.sections import CacheConfig
from pipelines.data.order.draws import Balanced
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import FILLER, Plan, Sizes, plan_tasks, rows_within
from pipelines.data.shards.disk_cache import open_cache
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.reader import FetchedRows, Reader
from pipelines.data.shards.stored_images import no_labels
from pipelines.data.shards.work_item import WorkItem, from_text, to_text
from pipelines.data.tasks.crops import Block, TaskConfig, load_item
from pipelines.data.tasks.encoded import filler_columns, load_undecoded
from pipelines.data.tasks.ray_tasks import limited, quiet
from pipelines.data.tasks.timing import StageClock
from pipelines.training.ordered import Chunks, chunked, sealed, task_rows

# One actor hands all blocks to all workers, and needs milliseconds of CPU time for a block of any size
# (docs/scaling.md). So a block has the rows of a worker's step, within these limits.
_BLOCK_BYTES = (16 * 2**20, 64 * 2**20)
# At least: with fewer, the tasks that run at once, and so a step, would mix epochs of a small data set.
_ITEMS_PER_EPOCH, _BLOCKS_PER_EPOCH = 8, 16
_LEAST_ITEM_ROWS = 64
_BLOCKS_AHEAD = 4  # of one task, before it waits for Ray to take them: Ray looks at least 10 times a second
_PLAN_ROWS = 256  # tasks that are planned at once; Ray pauses a plan that is far ahead
_ITEMS_PER_TASK = 32  # at most; a task waits for its first item, and reads each next one while it decodes
_TASKS_PER_CPU = 16  # at least, if there are enough items: all CPUs are busy to the end

_Ahead = Iterable[tuple[WorkItem, Future[FetchedRows]]]

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
    total_samples: int  # of the whole run; a sample is one row, also if several crops of it are trained on
    step_rows: int  # of one step over all workers
    worker_rows: int = 0  # of one step and worker, if the run has all its workers
    task_mb: int
    ordered: bool
    decode_on: DecodeOn = "host"
    cache: CacheConfig | None = None
    tolerant: bool = False  # bad samples become rows that name them, not errors
    cpus: float = math.inf  # most CPUs of data tasks at once
    worker_cpus: float = 0.0  # CPUs of the cluster that each worker holds
    balanced: Balanced | None = None  # None = every image once an epoch
    class_weights: tuple[float, ...] = ()  # of the loss, by class; empty = all 1
    evaluation_cpus: float = 0.0  # of each evaluation task; a data task holds 1 minus this (infra.capacity)

    @property
    def plan(self) -> Plan:
        most = min(8192, max(_LEAST_ITEM_ROWS, self.manifest.splits[self.split] // _ITEMS_PER_EPOCH))
        size_bytes = self.task_mb * 2**20 // self.crop.repeats
        wanted = rows_within(size_bytes, self.largest, least=_LEAST_ITEM_ROWS, most=most)
        return Plan(
            manifest=self.manifest,
            split=self.split,
            seed=self.seed,
            total_samples=self.total_samples,
            item_rows=task_rows(self.step_rows, wanted) if self.ordered else wanted,
            exact=self.ordered,
            sizes=self.sizes,
            balanced=self.balanced,
        )

    @property
    def largest(self) -> int:
        """Side of the largest crop, pixels."""
        return max(size for _, size in self.sizes)

    def block_rows(self, image_size: int) -> int:
        """Return about how many rows a block has.

        Each epoch has several blocks for each worker; else workers would train on different epochs at once.
        """
        least, most = _BLOCK_BYTES
        step_bytes = self.worker_rows * self.crop.repeats * 3 * image_size**2
        wanted = min(max(step_bytes, least), most)
        rows = rows_within(wanted, image_size, least=16, most=1024) // self.crop.repeats
        return max(1, min(rows, self.manifest.splits[self.split] // _BLOCKS_PER_EPOCH))

    @property
    def block_bytes(self) -> int:
        """Bytes of images in the smallest block, about."""
        return min(self.block_rows(size) * self.crop.repeats * 3 * size**2 for _, size in self.sizes)

    def chunks(self, world_size: int) -> Chunks:
        """Return how rows are dealt to workers: singly, or in chunks if the plan's order is kept."""
        if not self.ordered:
            return Chunks(rows=1, world_size=world_size)
        return Chunks.of(self.step_rows, self.plan.item_rows, world_size, self.block_rows(self.largest))

    def config(self, rows_per_block: int) -> TaskConfig:
        """Return how data tasks make blocks of items."""
        return TaskConfig(
            crop=self.crop, train=True, seed=self.seed, rows_per_block=rows_per_block, tolerant=self.tolerant
        )

    def reader(self) -> Reader:
        """Return the reader of a data task."""
        return Reader(
            store=open_store(self.data_uri),
            manifest=self.manifest,
            cache=open_cache(self.cache) if self.cache else None,
            tolerant=self.tolerant,
        )


def placeholder() -> None:
    """Stand for the dataset of a worker group: Train needs only its name, and `IngestConfig` builds it."""


class IngestConfig(ray.train.DataConfig):
    """Builds the rest of the stream when a worker group starts.

    Its actor imports the modules of this object and of the dataset; without torch it starts in half the time.
    """

    def __init__(self, stream: Stream, warn: Warn = logger.warning) -> None:
        super().__init__(datasets_to_split=["train"])
        self._stream, self._warn = stream, warn

    def configure(
        self, datasets: Any, world_size: int, worker_handles: Any, worker_node_ids: Any, **_: Any
    ) -> list[dict[str, Any]]:
        dataset = remaining(self._stream, world_size, self._warn)
        hints = None if self._stream.ordered else worker_node_ids
        return [{"train": part} for part in dataset.streaming_split(world_size, equal=True, locality_hints=hints)]


def remaining(stream: Stream, world_size: int, warn: Warn = logger.warning) -> ray.data.Dataset:
    """Return the rows of the plan that the newest checkpoint leaves; `warn` is called for each damaged checkpoint."""
    newest = RunFolder(open_store(stream.run_uri)).newest(warn)
    if newest is None:
        return build_dataset(stream, 0, Ledger(stream.manifest.splits[stream.split]), world_size)
    return build_dataset(stream, newest.step, Ledger.from_arrays(newest.ledger), world_size)


def build_dataset(stream: Stream, base: int, ledger: Ledger, world_size: int) -> ray.data.Dataset:
    """Return the rows that `ledger` leaves, as a lazy dataset. Every worker gets at least one row, maybe a filler."""
    rest = stream.total_samples - ledger.total
    cpus, rows = max(1, int(ray.cluster_resources().get("CPU", 1))), stream.manifest.splits[stream.split]
    most_rows = min(rest / (_TASKS_PER_CPU * cpus), rows / cpus)  # tasks that run at once stay within an epoch
    items_per_task = max(1, min(_ITEMS_PER_TASK, int(most_rows / stream.plan.item_rows)))
    chunks = stream.chunks(world_size)

    def tasks() -> Iterator[str]:
        count = 0
        for items in plan_tasks(stream.plan, ledger, items_per_task):
            count += chunks.count(sum(item.rows for item in items))
            yield to_text(items)
        if missing := chunks.missing(count):
            yield to_text([_filler_item(missing * chunks.rows, stream.sizes[-1][1])])

    def plan(_: Any) -> Iterator[dict[str, Any]]:
        planned = tasks()
        while part := list(itertools.islice(planned, _PLAN_ROWS)):
            yield {"task": part}

    def load(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        reader, clock = stream.reader(), StageClock()
        for task in batch["task"]:
            for block in _load(stream, reader.ahead(from_text(task)), chunks, clock):
                rows = len(block["id"])
                warning = {"warning": _first(rows, reader.take_warning())}
                whole = {**block, "base": np.full(rows, base, dtype=np.int64), **warning, **clock.columns(rows)}
                yield sealed(whole) if stream.ordered else whole
                clock.restart()

    planned = ray.data.from_items([{"run": 0}], override_num_blocks=1).map_batches(plan, batch_size=None, num_cpus=0)
    if not stream.ordered:  # in order, every row is a block already
        planned = planned.repartition(target_num_rows_per_block=1)
    task_cpus = 1 - stream.evaluation_cpus
    dataset = planned.map_batches(load, batch_size=None, num_cpus=task_cpus, **ingest_options())
    context = dataset.context
    # Ray joins blocks below this size and cuts those above 1.5 times it. Ours are between the two, except for the
    # larger images of a curriculum, whose blocks may be cut. A sealed block is one row, which cannot be cut.
    context.target_max_block_size = 1 if stream.ordered else stream.block_bytes * 3 // 4
    context._max_num_blocks_in_streaming_gen_buffer = _BLOCKS_AHEAD
    context.raise_original_map_exception = True
    context.execution_options = ray.data.ExecutionOptions(preserve_order=stream.ordered)
    return limited(quiet(dataset), held=world_size * stream.worker_cpus, most=stream.cpus)


def _load(stream: Stream, fetched: _Ahead, chunks: Chunks, clock: StageClock) -> Iterator[Block]:
    """Yield the blocks of a task's items."""
    if not stream.ordered:
        for item, ahead in fetched:
            rows = _even(item.rows, stream.block_rows(item.image_size))
            yield from _load_item(stream, item, stream.config(rows), clock, ahead)
        return
    config = stream.config(chunks.rows)
    blocks = (block for item, ahead in fetched for block in _load_item(stream, item, config, clock, ahead))
    yield from chunked(blocks, chunks.rows, lambda rows, size: _filler_block(stream, _filler_item(rows, size), config))


def _load_item(
    stream: Stream, item: WorkItem, config: TaskConfig, clock: StageClock, ahead: Future[FetchedRows]
) -> Iterator[Block]:
    if not item.pieces:
        yield _filler_block(stream, item, config)
        return
    load = load_undecoded if stream.decode_on == "device" else load_item
    yield from load(open_store(stream.data_uri), stream.manifest, item, config, clock, ahead)


def _even(total: int, rows: int) -> int:
    """Return about `rows`, so that `total` rows make equal blocks. Ray would copy a small last block into the next."""
    return -(-total // max(1, round(total / rows)))


def _filler_item(rows: int, image_size: int) -> WorkItem:
    return WorkItem(epoch=FILLER, pieces=(), rows=rows, image_size=image_size)


def _filler_block(stream: Stream, item: WorkItem, config: TaskConfig) -> Block:
    rows, size = item.rows, item.image_size
    if stream.decode_on == "device":
        images = filler_columns(rows, stream.manifest, config, size)
    else:
        images = {"image": np.zeros((rows, *config.image_shape(size)), dtype=np.uint8)}
    return {
        **images,
        "label": no_labels(rows, stream.manifest),
        "id": np.full(rows, FILLER, dtype=np.int64),
        "draw": np.full(rows, FILLER, dtype=np.int64),
        "epoch": np.full(rows, FILLER, dtype=np.int32),
        "bad": _first(rows, ""),
    }


def _first(rows: int, text: str) -> npt.NDArray[np.object_]:
    """Return a column with `text` in its first row and "" in the others."""
    column = np.full(rows, "", dtype=object)
    column[:1] = text
    return column
