"""A worker's end of the stream: it turns blocks into rank batches, and accounts for every sample.

A thread takes blocks from Ray ahead of the training, from the start. On a GPU, a second thread prepares the next rank
batch on a side stream (`pipelines.training.side_stream`) while the current one trains. On a CPU the training thread
prepares its rank batches itself, since a second thread would take CPU cores from the training (docs/decisions/0032).
A rank batch that is prepared but not handed out is not accounted for: a resumed run reads its samples again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from infra.errors import UserError
from pipelines.data.order.plan import FILLER
from pipelines.data.shards.bad_records import Fault
from pipelines.data.tasks.timing import DataTimes
from pipelines.training.device_decode import DeviceImages, UndecodableError, made_on_device
from pipelines.training.side_stream import SideStream
from resnet_core.step import Microbatch, RankBatch

_BLOCKS_AHEAD = 2

Rows = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Division of the run's samples into steps; the last step also takes the remainder.

    A sample is a row of the stream, and gives `repeats` images to a step.
    """

    total_samples: int
    total_steps: int
    global_batch_size: int  # images
    world_size: int
    microbatch_size: int  # images; 0 = no limit
    repeats: int = 1
    chunk_rows: int = 1  # rows of a chunk; chunks are dealt to the ranks in turn

    def __post_init__(self) -> None:
        if self.global_batch_size % (self.repeats * self.chunk_rows):
            raise UserError(
                f"optim.global_batch_size must be a multiple of data.repeats = {self.repeats}, "
                f"got {self.global_batch_size}"
            )

    @property
    def images_per_rank(self) -> int:
        """Most images of a rank in one step, except for a last step that takes a remainder."""
        return self.repeats * max(self.rows(0, nth) for nth in range(self.world_size))

    def rows(self, rank: int, nth: int) -> int:
        """Return the rows of a rank in the `nth` step since the stream began, if it is not the last step.

        The chunks of a step need not divide among the ranks. The ranks with one more change from step to step, as in
        the stream, which deals chunks to the ranks in turn.
        """
        chunks = self.global_batch_size // self.repeats // self.chunk_rows
        before, after = (-((rank - place) // self.world_size) for place in (nth * chunks, (nth + 1) * chunks))
        return (after - before) * self.chunk_rows

    def count(self, step: int) -> int:
        """Return the images of the 0-based `step` over all ranks."""
        last = self.total_steps - 1
        if step < last:
            return self.global_batch_size
        return self.total_samples * self.repeats - last * self.global_batch_size


@dataclass(slots=True)
class _Account:
    """Marks, bad samples, warnings and times that belong to rows of the stream."""

    marks: list[npt.NDArray[np.int64]] = field(default_factory=list)
    """(epoch, draw) [n, 2] of samples."""
    bad: list[tuple[int, int, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    times: DataTimes = field(default_factory=DataTimes)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A rank batch that waits for its step."""

    batch: RankBatch
    account: _Account
    event: Any  # after the batch's last work on its stream; None on a CPU


class RankBatches:
    """Rank batches of a worker. A thread reads ahead from the start, while the model is built."""

    def __init__(
        self,
        blocks: Iterable[Rows],
        steps: Steps,
        device: torch.device,
        maker: DeviceImages | None = None,
        rank: int = 0,
        stream: SideStream | None = None,
    ) -> None:
        """Start to read. `maker` makes crops of blocks that have none; `stream` replaces the default side stream."""
        self._steps = steps
        self._rank = rank
        self._device = device
        self._maker = maker or DeviceImages(device=device)
        self._stream = stream or SideStream(device)
        self._ahead: queue.Queue[Rows | BaseException | None] = queue.Queue(_BLOCKS_AHEAD)
        self._held: deque[Rows] = deque()
        self._filler = 0  # filler rows that arrived and have not yet replaced samples
        self._found = _Account()  # since the last rank batch was prepared; used by the thread that prepares
        self._handed_out = _Account()  # of the rank batches that were handed out
        self._reported: set[str] = set()
        self.times = DataTimes()
        """Times of the data since the owner last reset them, without the wait for the first block."""
        threading.Thread(target=self._read, args=(blocks,), name="read-blocks", daemon=True).start()

    def base(self) -> int:
        """Return the step of the checkpoint that the stream resumes from; wait for the first rows."""
        if not self._held:
            self._hold_next()
            self._found.times = self._found.times.waiting(0.0)
            self._account_for(self._take_account(), waited_s=0.0)
        return int(self._held[0]["base"][0])

    def from_step(self, start: int) -> Iterator[RankBatch]:
        """Yield the rank batch of each step from `start`."""
        prepared = self._prepared(start)
        if self._stream.asynchronous:
            prepared = one_ahead(prepared, self._stream.entered)
        with closing(prepared):
            while True:
                began = time.perf_counter()
                step = next(prepared, None)
                if step is None:
                    return
                self._account_for(step.account, waited_s=time.perf_counter() - began)
                tensors = [each for part in step.batch.microbatches for each in (part.images_BHWC, part.labels_B)]
                self._stream.receive(step.event, tensors)
                yield step.batch

    def drain_marks(self) -> npt.NDArray[np.int64]:
        """Return (epoch, draw) [n, 2] of the samples handed out since the last call.

        A draw is the sample's id, or its number in the epoch (`pipelines.data.order.plan.Drawn`).
        """
        marks, self._handed_out.marks = self._handed_out.marks, []
        return np.concatenate(marks) if marks else np.zeros((0, 2), dtype=np.int64)

    def drain_bad(self) -> list[tuple[int, int, str]]:
        """Return (id, epoch, what is wrong) of the bad samples since the last call; the marks include them."""
        bad, self._handed_out.bad = self._handed_out.bad, []
        return bad

    def drain_warnings(self) -> list[str]:
        """Return the warnings of data tasks since the last call; no line is returned twice."""
        warnings, self._handed_out.warnings = self._handed_out.warnings, []
        new = [warning for warning in dict.fromkeys(warnings) if warning not in self._reported]
        self._reported.update(new)
        return new

    def _account_for(self, account: _Account, *, waited_s: float) -> None:
        """Account for a rank batch that is handed out, for which the training waited `waited_s`."""
        self._handed_out.marks += account.marks
        self._handed_out.bad += account.bad
        self._handed_out.warnings += account.warnings
        self.times += account.times.waiting(waited_s)

    def _take_account(self) -> _Account:
        found, self._found = self._found, _Account()
        return found

    def _prepared(self, start: int) -> Generator[_Prepared]:
        """Prepare the rank batches from step `start`, in the calling thread."""
        for step in range(start, self._steps.total_steps):
            began = time.perf_counter()
            last = step == self._steps.total_steps - 1
            batch = self._rank_batch(self._take(None if last else self._steps.rows(self._rank, step - start)), step)
            event = self._stream.finished()
            account = self._take_account()
            collate_s = time.perf_counter() - began - account.times.waited_s
            account.times += DataTimes(collate_s=collate_s)
            yield _Prepared(batch, account, event)

    def _rank_batch(self, blocks: list[Rows], step: int) -> RankBatch:
        microbatches: list[Microbatch] = []
        limit = self._steps.microbatch_size or self._steps.images_per_rank
        for same_size in _by_image_size(blocks):
            self._found.marks += [np.stack([_int64(rows["epoch"]), _int64(rows["draw"])], axis=1) for rows in same_size]
            kept = self._good([(rows, rows["bad"]) for rows in same_size])
            while kept:
                try:
                    microbatches += self._batch(kept).split(limit)
                    break
                except UndecodableError as error:  # the keys of its samples are not known here
                    notes = {place: Fault("undecodable", reason).note("") for place, reason in error.reasons.items()}
                    kept = self._good(_with_notes(kept, notes))
        return RankBatch(microbatches=microbatches, count=self._steps.count(step), world_size=self._steps.world_size)

    def _good(self, noted: list[tuple[Rows, npt.NDArray[np.object_]]]) -> list[Rows]:
        """Return the rows without a note. The other rows are bad; keep their notes."""
        kept = []
        for rows, notes in noted:
            bad = notes != ""
            if bad.any():
                columns = (rows["id"][bad].tolist(), rows["epoch"][bad].tolist(), notes[bad].tolist())
                self._found.bad += zip(*columns, strict=True)
            if not bad.all():
                kept.append(_rows_where(rows, ~bad))
        return kept

    def _batch(self, blocks: list[Rows]) -> Microbatch:
        """Join blocks into one batch: the first crop of every sample, then the second crop of every sample, and so on.

        Crops of one sample are kept apart, because mixing pairs neighbours, and a microbatch should have as many
        different samples as possible.
        """
        once = np.concatenate([rows["label"] for rows in blocks])
        labels = np.concatenate([once] * self._steps.repeats)
        if made_on_device(blocks[0]):
            began = time.perf_counter()
            images = self._maker.crops(blocks, self._stream, self._found.warnings.append)
            self._found.times += DataTimes(device_s=time.perf_counter() - began)
        elif self._steps.repeats > 1:  # [n, r, ...] becomes [r, n, ...] in the copy
            images = self._stream.send([rows["image"].swapaxes(0, 1) for rows in blocks], axis=1).flatten(0, 1)
        else:
            images = self._stream.send([rows["image"] for rows in blocks])
        self._found.times += DataTimes(images=len(labels))
        return Microbatch(images_BHWC=images, labels_B=self._stream.send([labels]))

    def _take(self, count: int | None) -> list[Rows]:
        """Take exactly `count` samples from the stream; None = all that are left.

        Filler rows may come before the last samples. They count only if the stream ends with too few samples.
        """
        taken: list[Rows] = []
        missing = count if count is not None else np.inf
        while missing > 0 and (self._held or self._hold_next()):
            block = self._without_filler(self._held.popleft())
            rows = len(block["id"])
            if rows > missing:
                cut = int(missing)
                self._held.appendleft({name: column[cut:] for name, column in block.items()})
                block, rows = {name: column[:cut] for name, column in block.items()}, cut
            taken += [block] if rows else []
            missing -= rows
        if count is not None:
            if missing > self._filler:
                raise RuntimeError(f"the stream ended {missing - self._filler} rows early")
            self._filler -= int(missing)
        return taken

    def _without_filler(self, block: Rows) -> Rows:
        real = block["id"] != FILLER
        self._filler += len(real) - int(np.count_nonzero(real))
        return _rows_where(block, real)

    def _hold_next(self) -> bool:
        requested_at, began = time.time(), time.perf_counter()
        block = self._ahead.get()
        waited_s = time.perf_counter() - began
        if isinstance(block, BaseException):
            raise block
        if block is None:
            self._ahead.put(None)
            return False
        self._found.times += DataTimes.of_block(block, requested_at, waited_s)
        self._found.warnings += filter(None, block["warning"])
        self._held.append(block)
        return True

    def _read(self, blocks: Iterable[Rows]) -> None:
        try:
            for block in blocks:
                if len(block["id"]):  # Ray's splitter also hands out empty rests of blocks
                    self._ahead.put(block)
        except BaseException as error:  # raised again in the thread that waits for rows
            self._ahead.put(error)
        else:
            self._ahead.put(None)


def _rows_where(rows: Rows, mask: npt.NDArray[np.bool_]) -> Rows:
    return rows if mask.all() else {name: column[mask] for name, column in rows.items()}


def _with_notes(blocks: list[Rows], notes: Mapping[int, str]) -> list[tuple[Rows, npt.NDArray[np.object_]]]:
    """Return each block with the notes of its rows; a key of `notes` is an index over the rows of all blocks."""
    noted, begin = [], 0
    for rows in blocks:
        count = len(rows["id"])
        column = np.full(count, "", dtype=object)
        for place in range(count):
            column[place] = notes.get(begin + place, "")
        noted.append((rows, column))
        begin += count
    return noted


def _by_image_size(blocks: list[Rows]) -> list[list[Rows]]:
    """Return the blocks in groups of one image size."""
    groups: dict[tuple[int, ...], list[Rows]] = {}
    for block in blocks:
        size = (int(block["size"][0]),) if made_on_device(block) else block["image"].shape[1:]
        groups.setdefault(size, []).append(block)
    return list(groups.values())


def _int64(column: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return column.astype(np.int64)


Item = TypeVar("Item")


def one_ahead(items: Iterator[Item], context: Callable[[], AbstractContextManager[None]]) -> Generator[Item]:
    """Yield `items` in order; a thread, inside `context`, makes the next item while the current one is in use.

    An exception of `items` is raised after the items before it. Closing the iterator ends the thread as soon as its
    current item is made.
    """
    made: queue.SimpleQueue[tuple[Item] | BaseException | None] = queue.SimpleQueue()
    taken = threading.Semaphore(0)
    closed = False

    def work() -> None:
        try:
            with context():
                while not closed and (made_now := _next(items)):
                    made.put(made_now)
                    del made_now  # or this thread would keep the memory of the item
                    taken.acquire()
        except BaseException as error:  # raised again in the thread that waits for the item
            made.put(error)
        else:
            made.put(None)

    threading.Thread(target=work, name="one-ahead", daemon=True).start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            taken.release()
            yield item[0]
    finally:
        closed = True
        taken.release()


def _next(items: Iterator[Item]) -> tuple[Item] | None:
    for item in items:
        return (item,)
    return None
