"""A worker's end of the stream: blocks in, the shares of its steps out, every sample accounted for.

Two threads work ahead of the training: one takes blocks from Ray, as soon as the feed is made. On a GPU a second one
prepares the next step on a side stream (`pipelines.side_stream`) while the present one trains. On a CPU the training
thread prepares its steps itself: the cores that a second thread would use are those that train (docs/decisions/0032).
What is prepared and not handed out is not accounted for: a run that resumes reads it again.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from infra.errors import UserError
from pipelines.ahead import one_ahead
from pipelines.data.plan import FILLER
from pipelines.data.quarantine import Fault
from pipelines.data.stages import DataTimes
from pipelines.device_images import DeviceImages, UndecodableError, made_on_device
from pipelines.side_stream import SideStream
from resnet_core.step import Microbatch, Share

_BLOCKS_AHEAD = 2

Rows = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """How the run's samples become steps: the last step also takes the remainder.

    A sample is a row of the stream; with `repeats` it is that many images of a step.
    """

    total_samples: int
    total_steps: int
    global_batch_size: int  # images
    world_size: int
    microbatch_size: int  # images; 0 = no limit
    repeats: int = 1
    chunk_rows: int = 1  # rows that come together, dealt to the ranks in turn

    def __post_init__(self) -> None:
        if self.global_batch_size % (self.repeats * self.chunk_rows):
            raise UserError(
                f"optim.global_batch_size = {self.global_batch_size} does not divide by data.repeats = {self.repeats}"
            )

    @property
    def images_per_rank(self) -> int:
        """At most, but for a last step that takes a remainder."""
        return self.repeats * max(self.rows(0, nth) for nth in range(self.world_size))

    def rows(self, rank: int, nth: int) -> int:
        """What a rank takes in the n-th step since the stream began, but for the last one.

        The chunks of a step need not divide among the ranks: who takes one more changes from step to step, so that
        ranks that are dealt chunks in turn take what they are dealt.
        """
        chunks = self.global_batch_size // self.repeats // self.chunk_rows
        before, after = (-((rank - place) // self.world_size) for place in (nth * chunks, (nth + 1) * chunks))
        return (after - before) * self.chunk_rows

    def count(self, step: int) -> int:
        """Images of the 0-based `step` over all ranks."""
        last = self.total_steps - 1
        if step < last:
            return self.global_batch_size
        return self.total_samples * self.repeats - last * self.global_batch_size


@dataclass(slots=True)
class _Account:
    """What was found on the way to a step."""

    marks: list[npt.NDArray[np.int64]] = field(default_factory=list)
    """(epoch, id) [n, 2] of samples."""
    bad: list[tuple[int, int, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    times: DataTimes = field(default_factory=DataTimes)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A step that waits to be handed out."""

    share: Share
    account: _Account
    event: Any  # behind all that its stream was given


class Feed:
    """Reads ahead in a thread from the moment it is made, so that the model can be built meanwhile."""

    def __init__(
        self,
        blocks: Iterable[Rows],
        steps: Steps,
        device: torch.device,
        maker: DeviceImages | None = None,
        rank: int = 0,
        stream: SideStream | None = None,
    ) -> None:
        """`maker` makes the images of blocks that have none; `stream` takes the place of the device's own."""
        self._steps = steps
        self._rank = rank
        self._device = device
        self._maker = maker or DeviceImages(device=device)
        self._stream = stream or SideStream(device)
        self._ahead: queue.Queue[Rows | BaseException | None] = queue.Queue(_BLOCKS_AHEAD)
        self._held: deque[Rows] = deque()
        self._filler = 0  # rows that arrived and have not stood in for samples
        self._found = _Account()  # since the last step was prepared; of the thread that prepares
        self._given = _Account()  # with what was handed out
        self._told: set[str] = set()
        self.times = DataTimes()
        """What the data took since it was last set to nothing; the wait for the first block is left out."""
        threading.Thread(target=self._read, args=(blocks,), name="feed", daemon=True).start()

    def base(self) -> int:
        """The step whose checkpoint the stream continues; waits for the first rows."""
        if not self._held:
            self._hold_next()
            self._found.times = self._found.times.waiting(0.0)
            self._give(self._take_account(), waited_s=0.0)
        return int(self._held[0]["base"][0])

    def shares(self, start: int) -> Iterator[Share]:
        """This rank's part of each step from `start` on."""
        prepared = self._prepared(start)
        if self._stream.asynchronous:
            prepared = one_ahead(prepared, self._stream.entered)
        with closing(prepared):
            while True:
                began = time.perf_counter()
                step = next(prepared, None)
                if step is None:
                    return
                self._give(step.account, waited_s=time.perf_counter() - began)
                tensors = [each for batch in step.share.microbatches for each in (batch.images_BHWC, batch.labels_B)]
                self._stream.receive(step.event, tensors)
                yield step.share

    def drain_marks(self) -> npt.NDArray[np.int64]:
        """(epoch, id) [n, 2] of the samples handed out since the last call."""
        marks, self._given.marks = self._given.marks, []
        return np.concatenate(marks) if marks else np.zeros((0, 2), dtype=np.int64)

    def drain_bad(self) -> list[tuple[int, int, str]]:
        """(id, epoch, what is wrong) of the samples thrown away since the last call; they are among the marks."""
        bad, self._given.bad = self._given.bad, []
        return bad

    def drain_warnings(self) -> list[str]:
        """What data tasks have to tell since the last call; no line comes again."""
        warnings, self._given.warnings = self._given.warnings, []
        new = [warning for warning in dict.fromkeys(warnings) if warning not in self._told]
        self._told.update(new)
        return new

    def _give(self, account: _Account, *, waited_s: float) -> None:
        """Account for what is handed out now, for which the training waited so long."""
        self._given.marks += account.marks
        self._given.bad += account.bad
        self._given.warnings += account.warnings
        self.times += account.times.waiting(waited_s)

    def _take_account(self) -> _Account:
        found, self._found = self._found, _Account()
        return found

    def _prepared(self, start: int) -> Generator[_Prepared]:
        """The steps from `start` on, in the thread that asks for them."""
        for step in range(start, self._steps.total_steps):
            began = time.perf_counter()
            last = step == self._steps.total_steps - 1
            share = self._share(self._take(None if last else self._steps.rows(self._rank, step - start)), step)
            event = self._stream.finished()
            account = self._take_account()
            collate_s = time.perf_counter() - began - account.times.waited_s
            account.times += DataTimes(collate_s=collate_s)
            yield _Prepared(share, account, event)

    def _share(self, blocks: list[Rows], step: int) -> Share:
        batches: list[Microbatch] = []
        limit = self._steps.microbatch_size or self._steps.images_per_rank
        for same_size in _by_image_size(blocks):
            self._found.marks += [np.stack([_int64(rows["epoch"]), _int64(rows["id"])], axis=1) for rows in same_size]
            kept = self._good([(rows, rows["bad"]) for rows in same_size])
            while kept:
                try:
                    batches += self._batch(kept).split(limit)
                    break
                except UndecodableError as error:  # its samples' keys are not known here
                    notes = {place: Fault("undecodable", reason).note("") for place, reason in error.reasons.items()}
                    kept = self._good(_with_notes(kept, notes))
        return Share(microbatches=batches, count=self._steps.count(step), world_size=self._steps.world_size)

    def _good(self, noted: list[tuple[Rows, npt.NDArray[np.object_]]]) -> list[Rows]:
        """The rows of blocks without a note; the others are bad, and what their notes say is kept."""
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
        """Views as images of their own: the first of every sample, then the second of every sample, and so on.

        Not sample after sample: mixing pairs neighbours, and a microbatch should have as many different samples as it
        can.
        """
        labels = np.tile(np.concatenate([rows["label"] for rows in blocks]), self._steps.repeats)
        if made_on_device(blocks[0]):
            began = time.perf_counter()
            images = self._maker.crops(blocks, self._stream, self._found.warnings.append)
            self._found.times += DataTimes(device_s=time.perf_counter() - began)
        elif self._steps.repeats > 1:  # [n, r, ...] to [r, n, ...] while they are copied
            images = self._stream.send([rows["image"].swapaxes(0, 1) for rows in blocks], axis=1).flatten(0, 1)
        else:
            images = self._stream.send([rows["image"] for rows in blocks])
        self._found.times += DataTimes(images=len(labels))
        return Microbatch(images_BHWC=images, labels_B=self._stream.send([labels]))

    def _take(self, count: int | None) -> list[Rows]:
        """Exactly `count` samples, or all that are left.

        Filler may come before the last samples: it counts only where the stream has ended without enough of them.
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
        asked_at, began = time.time(), time.perf_counter()
        block = self._ahead.get()
        waited_s = time.perf_counter() - began
        if isinstance(block, BaseException):
            raise block
        if block is None:
            self._ahead.put(None)
            return False
        self._found.times += DataTimes.of_block(block, asked_at, waited_s)
        self._found.warnings += filter(None, block["warning"])
        self._held.append(block)
        return True

    def _read(self, blocks: Iterable[Rows]) -> None:
        try:
            for block in blocks:
                if len(block["id"]):  # Ray's splitter also hands out what it has cut off, if it is nothing
                    self._ahead.put(block)
        except BaseException as error:  # whatever it is, it belongs to the thread that waits for rows
            self._ahead.put(error)
        else:
            self._ahead.put(None)


def _rows_where(rows: Rows, mask: npt.NDArray[np.bool_]) -> Rows:
    return rows if mask.all() else {name: column[mask] for name, column in rows.items()}


def _with_notes(blocks: list[Rows], notes: Mapping[int, str]) -> list[tuple[Rows, npt.NDArray[np.object_]]]:
    """Blocks, and for each of their rows its note, or nothing; places count through all blocks."""
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
    """The blocks, those of one image size together."""
    groups: dict[tuple[int, ...], list[Rows]] = {}
    for block in blocks:
        size = (int(block["size"][0]),) if made_on_device(block) else block["image"].shape[1:]
        groups.setdefault(size, []).append(block)
    return list(groups.values())


def _int64(column: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return column.astype(np.int64)
