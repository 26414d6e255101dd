"""Timing of the data path: the time that data tasks spend per block, and the time that a worker waits. Numpy only.

The first row of a block carries the seconds that a data task spent on the block. The sum therefore stays exact when
Ray cuts and joins blocks. Every row carries the time at which its block was produced. Waiting is split at that time:
before it, the worker waited for data tasks; after it, for Ray's delivery.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.retry import take_retries

STAGES = ("read", "decode", "transfer", "collate", "device")
"""read: fetch and verify shards. decode: decode and crop in data tasks. transfer: Ray's delivery. collate: make batches
of blocks and send them to the device. device: decode and crop on the device, if the recipe says so."""

Columns = dict[str, npt.NDArray[Any]]


class StageClock:
    """A clock that splits a data task's time per block into reading and decoding, which is all the rest."""

    def __init__(self) -> None:
        self.restart()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count the time inside the `with` block as reading."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._read_s += time.perf_counter() - began

    def columns(self, rows: int) -> Columns:
        """Return the timing columns of a block that is complete now."""
        read_s, decode_s = np.zeros((2, rows))
        read_s[:1] = self._read_s
        decode_s[:1] = time.perf_counter() - self._since - self._read_s
        retries = np.zeros(rows, dtype=np.int64)
        if rows:
            retries[0] = take_retries()
        return {"read_s": read_s, "decode_s": decode_s, "made_at": np.full(rows, time.time()), "retries": retries}

    def restart(self) -> None:
        """Start timing the next block. The time since the last block was not the task's."""
        self._since = time.perf_counter()
        self._read_s = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DataTimes:
    """The data times of one worker, or the sum over several, in some period. Seconds, except `images` and `retries`."""

    images: int = 0
    tasks_s: float = 0.0  # worker waited for blocks that no data task had produced yet
    transfer_s: float = 0.0  # worker waited for blocks that were produced already
    collate_s: float = 0.0  # worker cut and joined blocks to batches, and sent them to the device
    device_s: float = 0.0  # worker waited for decoding and cropping on its device
    read_s: float = 0.0  # data tasks read the blocks that arrived
    decode_s: float = 0.0  # data tasks decoded and cropped these blocks
    retries: float = 0.0  # storage requests that data tasks repeated for these blocks

    @classmethod
    def of_block(cls, block: Columns, asked_at: float, waited_s: float) -> DataTimes:
        """Return the times of a block that arrived `waited_s` seconds after its request (`asked_at`, Unix time)."""
        tasks_s = min(max(float(block["made_at"].max()) - asked_at, 0.0), waited_s)  # two nodes' clocks may differ
        return cls(
            tasks_s=tasks_s,
            transfer_s=waited_s - tasks_s,
            read_s=float(block["read_s"].sum()),
            decode_s=float(block["decode_s"].sum()),
            retries=float(block["retries"].sum()),
        )

    def __add__(self, other: DataTimes) -> DataTimes:
        return DataTimes(**{name: getattr(self, name) + getattr(other, name) for name in _FIELDS})

    def waiting(self, seconds: float) -> DataTimes:
        """Return the same times with the waits scaled to a total of `seconds`, each stage in proportion.

        `seconds` is the time that the worker really waited. Stages that ran while the worker trained cost it nothing.
        """
        scale = seconds / self.waited_s if self.waited_s else 0.0
        return replace(self, **{name: getattr(self, name) * scale for name in _WAITS})

    @property
    def waited_s(self) -> float:
        """Return the seconds that the worker waited instead of training."""
        return float(sum(getattr(self, name) for name in _WAITS))

    def waits(self) -> dict[str, float]:
        """Split `waited_s` by stage. Waiting for data tasks is split in proportion to their reading and decoding."""
        busy = self.read_s + self.decode_s
        reading = self.tasks_s * (self.read_s / busy) if busy else 0.0
        waits = (reading, self.tasks_s - reading, self.transfer_s, self.collate_s, self.device_s)
        return dict(zip(STAGES, waits, strict=True))


_FIELDS = tuple(field.name for field in fields(DataTimes))
_WAITS = ("tasks_s", "transfer_s", "collate_s", "device_s")
