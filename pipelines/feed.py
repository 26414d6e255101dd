"""A worker's end of the stream: blocks in, the shares of its steps out, every sample accounted for."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from infra.errors import UserError
from pipelines.data.ingest import FILLER
from pipelines.data.quarantine import Fault
from pipelines.data.stages import DataTimes
from pipelines.device_images import DeviceImages, UndecodableError, made_on_device, to_device
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


class Feed:
    """Reads ahead in a thread from the moment it is made, so that the model can be built meanwhile."""

    def __init__(
        self,
        blocks: Iterable[Rows],
        steps: Steps,
        device: torch.device,
        maker: DeviceImages | None = None,
        rank: int = 0,
    ) -> None:
        """`maker` makes the images of blocks that have none."""
        self._steps = steps
        self._rank = rank
        self._device = device
        self._maker = maker or DeviceImages(device=device)
        self._ahead: queue.Queue[Rows | BaseException | None] = queue.Queue(_BLOCKS_AHEAD)
        self._held: deque[Rows] = deque()
        self._filler = 0  # rows that arrived and have not stood in for samples
        self._marks: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
        self._bad: list[tuple[int, int, str]] = []
        self._warnings: list[str] = []
        self._told: set[str] = set()
        self.times = DataTimes()
        """What the data took since it was last set to nothing; the wait for the first block is left out."""
        threading.Thread(target=self._read, args=(blocks,), name="feed", daemon=True).start()

    def base(self) -> int:
        """The step whose checkpoint the stream continues; waits for the first rows."""
        if not self._held:
            self._hold_next()
            self.times = dataclasses.replace(self.times, tasks_s=0.0, transfer_s=0.0)
        return int(self._held[0]["base"][0])

    def shares(self, start: int) -> Iterator[Share]:
        """This rank's part of each step from `start` on."""
        for step in range(start, self._steps.total_steps):
            last = step == self._steps.total_steps - 1
            began, before = time.perf_counter(), self.times.waited_s
            rows = self._take(None if last else self._steps.rows(self._rank, step - start))
            share = self._share(rows, step)
            known = self.times.waited_s - before
            self.times += DataTimes(collate_s=time.perf_counter() - began - known)
            yield share

    def drain_marks(self) -> npt.NDArray[np.int64]:
        """(epoch, id) [n, 2] of the samples handed out since the last call."""
        marks, self._marks = self._marks, []
        pairs = [np.stack([epochs, ids], axis=1) for epochs, ids in marks]
        return np.concatenate(pairs) if pairs else np.zeros((0, 2), dtype=np.int64)

    def drain_bad(self) -> list[tuple[int, int, str]]:
        """(id, epoch, what is wrong) of the samples thrown away since the last call; they are among the marks."""
        bad, self._bad = self._bad, []
        return bad

    def drain_warnings(self) -> list[str]:
        """What data tasks have to tell since the last call; no line comes again."""
        new = [warning for warning in dict.fromkeys(self._warnings) if warning not in self._told]
        self._told.update(new)
        self._warnings = []
        return new

    def _share(self, rows: list[Rows], step: int) -> Share:
        batches: list[Microbatch] = []
        for same_size in _by_image_size(rows):
            self._marks.append((same_size["epoch"].astype(np.int64), same_size["id"].astype(np.int64)))
            kept = self._good(same_size, same_size["bad"])
            limit = self._steps.microbatch_size or self._steps.images_per_rank
            while len(kept["id"]):
                try:
                    batches.extend(self._batch(kept).split(limit))
                    break
                except UndecodableError as error:  # found on the device; its key is not known here
                    notes = np.full(len(kept["id"]), "", dtype=object)
                    notes[error.place] = Fault("undecodable", error.reason).note("")
                    kept = self._good(kept, notes)
        return Share(microbatches=batches, count=self._steps.count(step), world_size=self._steps.world_size)

    def _good(self, rows: Rows, notes: npt.NDArray[np.object_]) -> Rows:
        """The rows without a note; the others are bad, and what their notes say is kept."""
        bad = _rows_where(rows, notes != "")
        self._bad += zip(bad["id"].tolist(), bad["epoch"].tolist(), notes[notes != ""].tolist(), strict=True)
        return _rows_where(rows, notes == "")

    def _batch(self, rows: Rows) -> Microbatch:
        """Views as images of their own: the first of every sample, then the second of every sample, and so on.

        Not sample after sample: mixing pairs neighbours, and a microbatch should have as many different samples as it
        can.
        """
        labels = np.tile(rows["label"], self._steps.repeats)
        if made_on_device(rows):
            began = time.perf_counter()
            images = self._maker.crops(rows)
            self.times += DataTimes(device_s=time.perf_counter() - began)
        else:
            views = _flat(rows["image"]) if self._steps.repeats > 1 else rows["image"]
            began = time.perf_counter()
            images = to_device(views, self._device)
            self.times += DataTimes(transfer_s=time.perf_counter() - began)
        self.times += DataTimes(images=len(labels))
        return Microbatch(images_BHWC=images, labels_B=to_device(labels, self._device))

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
        self.times += DataTimes.of_block(block, asked_at, waited_s)
        self._warnings += filter(None, block["warning"])
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


def _flat(views: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[n, r, ...] to [r * n, ...]."""
    return views.swapaxes(0, 1).reshape(-1, *views.shape[2:])


def _rows_where(rows: Rows, mask: npt.NDArray[np.bool_]) -> Rows:
    return rows if mask.all() else {name: column[mask] for name, column in rows.items()}


def _by_image_size(rows: list[Rows]) -> list[Rows]:
    """The rows, those of one image size together."""
    groups: dict[tuple[int, ...], list[Rows]] = {}
    for block in rows:
        size = (int(block["size"][0]),) if made_on_device(block) else block["image"].shape[1:]
        groups.setdefault(size, []).append(block)
    return [{name: np.concatenate([block[name] for block in group]) for name in group[0]} for group in groups.values()]
