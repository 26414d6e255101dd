"""The records of a work item: each made use of, or named with what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from pipelines.data.decode import DecodeError, OversizedImage, Record
from pipelines.data.quarantine import Fault, locate

if TYPE_CHECKING:
    from pipelines.data.manifest import Manifest
    from pipelines.data.read import Fetched

_T = TypeVar("_T")
MAX_RECORD_BYTES = 32 * 2**20
"""Of one stored image."""


class BadSample(UserError):
    """A stored image does not decode, or has no class. None is tolerated unless the recipe says so."""


class Records:
    """Rows of `Fetched`, with the faults that come to light."""

    def __init__(self, fetched: Fetched, manifest: Manifest, *, tolerant: bool) -> None:
        """A fault is noted if `tolerant`; else it is raised as `BadSample`."""
        self._fetched, self._manifest, self._tolerant = fetched, manifest, tolerant
        self.ids: npt.NDArray[np.int64] = fetched.table["id"].to_numpy()
        self.labels: npt.NDArray[np.int64] = fetched.table["label"].to_numpy().astype(np.int64)
        self._images = fetched.table["image"]
        self._notes = np.full(len(self.ids), "", dtype=object)

    def use(self, row: int, make: Callable[[Record, int], _T]) -> _T | None:
        """What `make` makes of a row's stored image and id; None where it may not be used.

        Raises:
            BadSample: it may not be used, and faults are not tolerated.
        """
        fault = self._fetched.faults.get(row) or self._label_fault(row)
        if fault is None:
            record = memoryview(self._images[row].as_buffer()).cast("B")  # Arrow's bytes have signs
            if len(record) > MAX_RECORD_BYTES:
                fault = Fault("oversized", f"{len(record):,} bytes are more than {MAX_RECORD_BYTES:,}")
        if fault is None:
            try:
                return make(record, int(self.ids[row]))
            except DecodeError as error:
                fault = Fault("oversized" if isinstance(error, OversizedImage) else "undecodable", str(error))
        key = self._fetched.table["key"][row].as_py()
        if not self._tolerant:
            raise self._error(row, key, fault)
        self._notes[row] = fault.note(key)
        return None

    def bad(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.object_]:
        """The column `bad` of rows that were used: "", or what is wrong with each (`quarantine.Fault.note`)."""
        notes: npt.NDArray[np.object_] = self._notes[rows]
        return notes

    def _label_fault(self, row: int) -> Fault | None:
        label, classes = int(self.labels[row]), len(self._manifest.class_names)
        if 0 <= label < classes:
            return None
        return Fault("mislabelled", f"label {label} is outside 0..{classes - 1}")

    def _error(self, row: int, key: str, fault: Fault) -> BadSample:
        sample_id = int(self.ids[row])
        shard, _ = locate(self._manifest, sample_id)
        does = "has no class" if fault.reason == "mislabelled" else "does not decode"
        return BadSample(f"sample {sample_id} ({key}) of shard {shard} {does}: {fault.detail}")
