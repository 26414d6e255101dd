"""Where the time of the data goes: what data tasks spend on their blocks, and what a worker waits for. Numpy only.

A block carries the seconds that a data task spent on it in its first row, so that they add up exactly however Ray cuts
and joins blocks, and in every row the moment at which it was made. A worker that waits for a block waits for the tasks
until that moment, and for Ray's delivery from then on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.patience import take_retries

STAGES = ("read", "decode", "transfer", "collate", "device")
"""Fetching and verifying shards; decoding and cropping in data tasks; Ray's delivery; making batches of blocks and
sending them to the device; decoding and cropping on the device, where the recipe has it there."""

Columns = dict[str, npt.NDArray[Any]]


class StageClock:
    """Splits the time of a data task over the blocks that it yields: reading, and all the rest, which is decoding."""

    def __init__(self) -> None:
        self.restart()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What happens inside is reading, whatever the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._read_s += time.perf_counter() - began

    def columns(self, rows: int) -> Columns:
        """The columns of a block that is ready now."""
        read_s, decode_s = np.zeros((2, rows))
        read_s[:1] = self._read_s
        decode_s[:1] = time.perf_counter() - self._since - self._read_s
        retries = np.zeros(rows, dtype=np.int64)
        if rows:
            retries[0] = take_retries()
        return {"read_s": read_s, "decode_s": decode_s, "made_at": np.full(rows, time.time()), "retries": retries}

    def restart(self) -> None:
        """Begin with the next block: what passed since the last one was not the task's time."""
        self._since = time.perf_counter()
        self._read_s = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DataTimes:
    """What one worker, or several added up, had of its data in some period. Seconds, but for `images` and `retries`."""

    images: int = 0
    tasks_s: float = 0.0  # waited for blocks that no data task had made yet
    transfer_s: float = 0.0  # waited for blocks that were made
    collate_s: float = 0.0  # cut and joined blocks to batches, and sent them to the device
    device_s: float = 0.0  # decoded and cropped on the worker's device, as far as the worker itself was held up
    read_s: float = 0.0  # of data tasks, spent on reading the blocks that arrived
    decode_s: float = 0.0  # of data tasks, spent on decoding and cropping them
    retries: float = 0.0  # requests to the storage that data tasks had to repeat for them

    @classmethod
    def of_block(cls, block: Columns, asked_at: float, waited_s: float) -> DataTimes:
        """A block that arrived `waited_s` seconds after it was asked for (`asked_at`, Unix time)."""
        tasks_s = min(max(float(block["made_at"].max()) - asked_at, 0.0), waited_s)  # clocks of two nodes may differ
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
        """Return the same, of which the worker was held up for `seconds` in all, by each stage in its proportion.

        What happened while the worker trained costs it nothing.
        """
        share = seconds / self.waited_s if self.waited_s else 0.0
        return replace(self, **{name: getattr(self, name) * share for name in _WAITS})

    @property
    def waited_s(self) -> float:
        """All that the worker did not train for."""
        return float(sum(getattr(self, name) for name in _WAITS))

    def waits(self) -> dict[str, float]:
        """`waited_s` by stage: waiting for data tasks is waiting for what they spend their time on."""
        busy = self.read_s + self.decode_s
        reading = self.tasks_s * (self.read_s / busy) if busy else 0.0
        waits = (reading, self.tasks_s - reading, self.transfer_s, self.collate_s, self.device_s)
        return dict(zip(STAGES, waits, strict=True))


_FIELDS = tuple(field.name for field in fields(DataTimes))
_WAITS = ("tasks_s", "transfer_s", "collate_s", "device_s")
