"""A worker's end of the stream: blocks in, the shares of its steps out, every sample accounted for."""

from __future__ import annotations

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

    def __post_init__(self) -> None:
        if self.images_per_rank % self.repeats:
            raise UserError(
                f"optim.global_batch_size = {self.global_batch_size} over {self.world_size} worker(s) does not divide "
                f"by data.repeats = {self.repeats}"
            )

    @property
    def images_per_rank(self) -> int:
        return self.global_batch_size // self.world_size

    @property
    def rows_per_rank(self) -> int:
        return self.images_per_rank // self.repeats

    def count(self, step: int) -> int:
        """Images of the 0-based `step` over all ranks."""
        last = self.total_steps - 1
        if step < last:
            return self.global_batch_size
        return self.total_samples * self.repeats - last * self.global_batch_size


class Feed:
    """Reads ahead in a thread from the moment it is made, so that the model can be built meanwhile."""

    def __init__(self, blocks: Iterable[Rows], steps: Steps, device: torch.device) -> None:
        self._steps = steps
        self._device = device
        self._ahead: queue.Queue[Rows | BaseException | None] = queue.Queue(_BLOCKS_AHEAD)
        self._held: deque[Rows] = deque()
        self._marks: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
        self.waited_s = 0.0
        """Seconds spent waiting for data since it was last set to 0."""
        self.images = 0
        """Images handed out since it was last set to 0."""
        threading.Thread(target=self._read, args=(blocks,), name="feed", daemon=True).start()

    def base(self) -> int:
        """The step whose checkpoint the stream continues; waits for the first rows."""
        if not self._held:
            self._hold_next()
        return int(self._held[0]["base"][0])

    def shares(self, start: int) -> Iterator[Share]:
        """This rank's part of each step from `start` on."""
        for step in range(start, self._steps.total_steps):
            last = step == self._steps.total_steps - 1
            began = time.monotonic()
            rows = self._take(None if last else self._steps.rows_per_rank)
            share = self._share(rows, step)
            self.waited_s += time.monotonic() - began
            yield share

    def drain_marks(self) -> npt.NDArray[np.int64]:
        """(epoch, id) [n, 2] of the samples handed out since the last call."""
        marks, self._marks = self._marks, []
        pairs = [np.stack([epochs, ids], axis=1) for epochs, ids in marks]
        return np.concatenate(pairs) if pairs else np.zeros((0, 2), dtype=np.int64)

    def _share(self, rows: list[Rows], step: int) -> Share:
        batches: list[Microbatch] = []
        for same_size in _by_image_size(rows):
            real = same_size["id"] != FILLER
            kept = same_size if real.all() else {name: column[real] for name, column in same_size.items()}
            if not len(kept["id"]):
                continue
            self._marks.append((kept["epoch"].astype(np.int64), kept["id"].astype(np.int64)))
            images, labels = _flatten(kept["image"], kept["label"], self._steps.repeats)
            self.images += len(labels)
            batch = Microbatch(images_BHWC=self._to_device(images), labels_B=self._to_device(labels))
            limit = self._steps.microbatch_size or self._steps.images_per_rank
            batches.extend(batch.split(limit))
        return Share(microbatches=batches, count=self._steps.count(step), world_size=self._steps.world_size)

    def _to_device(self, column: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(column))
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor

    def _take(self, count: int | None) -> list[Rows]:
        """Exactly `count` rows, or all that are left."""
        taken: list[Rows] = []
        missing = count if count is not None else np.inf
        while missing > 0 and (self._held or self._hold_next()):
            block = self._held.popleft()
            rows = len(block["id"])
            if rows > missing:
                cut = int(missing)
                self._held.appendleft({name: column[cut:] for name, column in block.items()})
                block, rows = {name: column[:cut] for name, column in block.items()}, cut
            taken.append(block)
            missing -= rows
        if count is not None and missing:
            raise RuntimeError(f"the stream ended {missing} rows early")
        return taken

    def _hold_next(self) -> bool:
        block = self._ahead.get()
        if isinstance(block, BaseException):
            raise block
        if block is None:
            self._ahead.put(None)
            return False
        self._held.append(block)
        return True

    def _read(self, blocks: Iterable[Rows]) -> None:
        try:
            for block in blocks:
                self._ahead.put(block)
        except BaseException as error:  # whatever it is, it belongs to the thread that waits for rows
            self._ahead.put(error)
        else:
            self._ahead.put(None)


def _flatten(
    images: npt.NDArray[Any], labels: npt.NDArray[Any], repeats: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Views as images of their own: the first of every sample, then the second of every sample, and so on.

    Not sample after sample: mixing pairs neighbours, and a microbatch should have as many different samples as it can.
    """
    if repeats == 1:
        return images, labels
    return images.swapaxes(0, 1).reshape(-1, *images.shape[2:]), np.tile(labels, repeats)


def _by_image_size(rows: list[Rows]) -> list[Rows]:
    """The rows, those of one image size together."""
    groups: dict[tuple[int, ...], list[Rows]] = {}
    for block in rows:
        groups.setdefault(block["image"].shape[1:], []).append(block)
    return [{name: np.concatenate([block[name] for block in group]) for name in group[0]} for group in groups.values()]
