"""Which samples each epoch has trained on: the memory that makes a resume exact whatever the number of workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_EPOCH_KEY = "epoch_{:06d}"


@dataclass(frozen=True, slots=True)
class EpochCount:
    """What an epoch has seen so far, in samples. None is ever seen twice: `Ledger.mark` would have raised."""

    once: int
    never: int


class Ledger:
    """One bit per sample and open epoch; finished epochs are a number. 160 kB an open epoch for ImageNet, stored.

    A sample is named by its ordinal: its id minus that of the split's first sample.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.complete = 0
        """Epochs 0..complete-1 have seen every sample."""
        self._open: dict[int, npt.NDArray[np.bool_]] = {}

    @property
    def total(self) -> int:
        """Samples marked over all epochs."""
        return self.complete * self.rows + sum(int(np.count_nonzero(mask)) for mask in self._open.values())

    def mark(self, epoch: int, ordinals: npt.NDArray[np.integer]) -> None:
        """Record samples as trained on in an epoch.

        Raises:
            RuntimeError: a sample is marked twice, or there is no such sample. Nothing is recorded then.
        """
        if len(ordinals) == 0:
            return
        if ordinals.min() < 0 or ordinals.max() >= self.rows:
            raise RuntimeError(f"epoch {epoch}: ordinals {ordinals.min()}..{ordinals.max()} leave 0..{self.rows - 1}")
        if epoch < self.complete:
            raise RuntimeError(f"epoch {epoch}: sample {ordinals[0]} is marked twice")
        mask = self._open.get(epoch, np.zeros(self.rows, dtype=bool))
        if mask[ordinals].any() or len(np.unique(ordinals)) < len(ordinals):
            again = ordinals[mask[ordinals]]
            which = again if len(again) else ordinals[np.bincount(ordinals)[ordinals] > 1]
            raise RuntimeError(f"epoch {epoch}: sample {which[0]} is marked twice")
        mask[ordinals] = True
        self._open[epoch] = mask
        self._collapse()

    def consumed(self, epoch: int) -> npt.NDArray[np.bool_]:
        """Mask [rows] of the samples that an epoch has seen."""
        if epoch < self.complete:
            return np.ones(self.rows, dtype=bool)
        return self._open.get(epoch, np.zeros(self.rows, dtype=bool)).copy()

    def merge(self, other: Ledger) -> None:
        """Add what another ledger of the same split has marked, such as another worker's.

        Raises:
            RuntimeError: both have marked the same sample, or they are of different splits.
        """
        if other.rows != self.rows:
            raise RuntimeError(f"cannot merge ledgers of {self.rows} and {other.rows} rows")
        for epoch in range(other.complete):
            self._add(epoch, other.consumed(epoch))
        for epoch, mask in sorted(other._open.items()):
            self._add(epoch, mask)

    def report(self) -> dict[int, EpochCount]:
        """Counts of every epoch that has begun."""
        counts = {epoch: EpochCount(self.rows, 0) for epoch in range(self.complete)}
        for epoch, mask in sorted(self._open.items()):
            once = int(np.count_nonzero(mask))
            counts[epoch] = EpochCount(once, self.rows - once)
        return counts

    def to_arrays(self) -> dict[str, npt.NDArray[np.uint8]]:
        """Named uint8 arrays, as safetensors stores them: two counters and one bitset per open epoch."""
        counters = np.array([self.rows, self.complete], dtype="<i8").view(np.uint8)
        return {"counters": counters, **{_EPOCH_KEY.format(e): np.packbits(mask) for e, mask in self._open.items()}}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.uint8]]) -> Ledger:
        """Inverse of `to_arrays`."""
        rows, complete = np.ascontiguousarray(arrays["counters"]).view("<i8").tolist()
        ledger = cls(rows)
        ledger.complete = complete
        for key in sorted(arrays.keys() - {"counters"}):
            ledger._add(int(key.removeprefix("epoch_")), np.unpackbits(arrays[key], count=rows).astype(bool))
        return ledger

    def _add(self, epoch: int, mask: npt.NDArray[np.bool_]) -> None:
        twice = mask & self.consumed(epoch)
        if twice.any():
            raise RuntimeError(f"epoch {epoch}: sample {int(np.argmax(twice))} is marked twice")
        if mask.any():
            self._open[epoch] = self.consumed(epoch) | mask
            self._collapse()

    def _collapse(self) -> None:
        while self.complete in self._open and self._open[self.complete].all():
            del self._open[self.complete]
            self.complete += 1
