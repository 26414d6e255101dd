"""The ledger of the samples that each epoch has trained on. It makes a resume exact for any number of workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.data.order.bitset import BitSet, Ints

_BITS, _RUNS = "epoch_", "runs_"  # prefixes of the name of an epoch's array


@dataclass(frozen=True, slots=True)
class EpochCount:
    """Samples that an epoch has seen so far. No sample is seen twice: `Ledger.mark` raises then."""

    once: int
    never: int


class Ledger:
    """The consumed samples of each epoch: one bit per sample and open epoch, and the number of finished epochs.

    ImageNet's ledger takes 160 kB of memory and about 17 kB in a checkpoint. A sample is named by its ordinal: its id
    minus the id of the split's first sample.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.complete = 0
        """Epochs 0..complete-1 have seen every sample."""
        self._open: dict[int, BitSet] = {}

    @property
    def total(self) -> int:
        """Return the number of marked samples over all epochs."""
        return self.complete * self.rows + sum(marked.count for marked in self._open.values())

    @property
    def nbytes(self) -> int:
        """Return the memory of the open epochs, in bytes."""
        return sum(marked.packed.nbytes for marked in self._open.values())

    def mark(self, epoch: int, ordinals: npt.NDArray[np.integer]) -> None:
        """Mark samples as consumed in an epoch, in time proportional to their number.

        Raises:
            RuntimeError: a sample is marked twice, or an ordinal is out of range. The ledger is unchanged then.
        """
        if len(ordinals) == 0:
            return
        found = np.sort(np.asarray(ordinals, dtype=np.int64))
        if found[0] < 0 or found[-1] >= self.rows:
            raise RuntimeError(f"epoch {epoch}: ordinals {found[0]}..{found[-1]} are not within 0..{self.rows - 1}")
        again = np.concatenate([found[1:][found[1:] == found[:-1]], found[self.marked(epoch, found)]])
        if len(again):
            raise RuntimeError(f"epoch {epoch}: sample {again[0]} is marked twice")
        if epoch not in self._open:
            self._open[epoch] = BitSet(self.rows)
        self._open[epoch].add(found)
        self._collapse()

    def marked(self, epoch: int, ordinals: Ints) -> npt.NDArray[np.bool_]:
        """Return a mask over `ordinals`: True for those that the epoch has seen."""
        if epoch not in self._open:
            return np.full(len(ordinals), epoch < self.complete)
        return self._open[epoch].has(ordinals)

    def count(self, epoch: int) -> int:
        """Return the number of samples that the epoch has seen."""
        if epoch not in self._open:
            return self.rows if epoch < self.complete else 0
        return self._open[epoch].count

    def counts(self, epoch: int, first: Ints) -> Ints:
        """Count the samples that the epoch has seen in each range of ordinals.

        Args:
            first: begin of each range, ascending from 0. A range ends where the next begins.
        """
        if epoch not in self._open:
            lengths: Ints = np.diff(first, append=self.rows) * (epoch < self.complete)
            return lengths
        return self._open[epoch].counts(first)

    def consumed(self, epoch: int) -> npt.NDArray[np.bool_]:
        """Return a mask [rows] of the samples that the epoch has seen. It takes one byte per row of the split."""
        if epoch not in self._open:
            return np.full(self.rows, epoch < self.complete)
        return self._open[epoch].unpacked()

    def report(self) -> dict[int, EpochCount]:
        """Return the counts of every epoch that has begun."""
        epochs = [*range(self.complete), *sorted(self._open)]
        return {epoch: EpochCount(self.count(epoch), self.rows - self.count(epoch)) for epoch in epochs}

    def to_arrays(self) -> dict[str, npt.NDArray[np.uint8]]:
        """Return named uint8 arrays for safetensors: two counters, and the runs or bits of each open epoch."""
        arrays = {"counters": np.array([self.rows, self.complete], dtype="<i8").view(np.uint8)}
        for epoch, marked in self._open.items():
            runs = marked.to_runs()
            if runs is None:
                arrays[f"{_BITS}{epoch:06d}"] = marked.packed.copy()
            else:
                arrays[f"{_RUNS}{epoch:06d}"] = runs
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.uint8]]) -> Ledger:
        """Read the result of `to_arrays`, or of its first version, which stored bits only."""
        rows, complete = np.ascontiguousarray(arrays["counters"]).view("<i8").tolist()
        ledger = cls(rows)
        ledger.complete = complete
        for key in sorted(arrays.keys() - {"counters"}):
            if key.startswith(_RUNS):
                ledger._open[int(key.removeprefix(_RUNS))] = BitSet.from_runs(rows, arrays[key])
            else:
                ledger._open[int(key.removeprefix(_BITS))] = BitSet(rows, arrays[key].copy())
        return ledger

    def _collapse(self) -> None:
        while self.count(self.complete) == self.rows and self.complete in self._open:
            del self._open[self.complete]
            self.complete += 1
