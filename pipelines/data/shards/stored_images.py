"""The stored images of a work item: each is used, or noted as a bad record with its fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from pipelines.data.images.pillow import DecodeError, EncodedImage, OversizedImage
from pipelines.data.shards.bad_records import Fault, locate

if TYPE_CHECKING:
    from pipelines.data.shards.manifest import Manifest
    from pipelines.data.shards.reader import FetchedRows

_T = TypeVar("_T")
MAX_RECORD_BYTES = 32 * 2**20
"""Largest stored image that is used."""


class BadSample(UserError):
    """A stored image does not decode, or has no class. It is an error unless the recipe tolerates bad records."""


def no_labels(rows: int, manifest: Manifest) -> npt.NDArray[np.int64] | npt.NDArray[np.uint8]:
    """Return the labels of rows that are not samples, in the form of `StoredImages.labels`: zeros."""
    if manifest.multi_label:
        return np.zeros((rows, len(manifest.class_names)), dtype=np.uint8)
    return np.zeros(rows, dtype=np.int64)


class StoredImages:
    """The rows of `FetchedRows`, with the faults that are found when the images are used."""

    def __init__(self, fetched: FetchedRows, manifest: Manifest, *, tolerant: bool) -> None:
        """Note faults if `tolerant`; else raise them as `BadSample`."""
        self._fetched, self._manifest, self._tolerant = fetched, manifest, tolerant
        self.ids: npt.NDArray[np.int64] = fetched.table["id"].to_numpy()
        self._wrong: dict[int, str] = {}  # rows without a valid label, each with the reason
        self.labels = self._read_labels()
        """Class indices, int64 [n]; multi-label: uint8 [n, classes], 1 for each class of the image."""
        self._images = fetched.table["image"]
        self._notes = np.full(len(self.ids), "", dtype=object)

    def use(self, row: int, make: Callable[[EncodedImage, int], _T]) -> _T | None:
        """Call `make` with a row's encoded image and id, and return its result. Return None for a bad record.

        Raises:
            BadSample: the row is a bad record, and faults are not tolerated.
        """
        fault = self._fetched.faults.get(row) or self._label_fault(row)
        if fault is None:
            encoded = memoryview(self._images[row].as_buffer()).cast("B")  # Arrow's bytes are signed
            if len(encoded) > MAX_RECORD_BYTES:
                fault = Fault("oversized", f"{len(encoded):,} bytes are more than {MAX_RECORD_BYTES:,}")
        if fault is None:
            try:
                return make(encoded, int(self.ids[row]))
            except DecodeError as error:
                fault = Fault("oversized" if isinstance(error, OversizedImage) else "undecodable", str(error))
        key = self._fetched.table["key"][row].as_py()
        if not self._tolerant:
            raise self._error(row, key, fault)
        self._notes[row] = fault.note(key)
        return None

    def bad(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.object_]:
        """Return the column `bad` of used rows: "" for a good row, else its fault (`bad_records.Fault.note`)."""
        notes: npt.NDArray[np.object_] = self._notes[rows]
        return notes

    def _label_fault(self, row: int) -> Fault | None:
        return Fault("mislabelled", self._wrong[row]) if row in self._wrong else None

    def _read_labels(self) -> npt.NDArray[np.int64] | npt.NDArray[np.uint8]:
        classes, table = len(self._manifest.class_names), self._fetched.table
        if self._manifest.multi_label:
            column = table["labels"].combine_chunks()
            lengths = column.value_lengths().to_numpy(zero_copy_only=False)
            owner, label = np.repeat(np.arange(len(table)), lengths), column.flatten().to_numpy()
        else:
            owner, label = np.arange(len(table)), table["label"].to_numpy()
        valid = (label >= 0) & (label < classes)
        for row, wrong in zip(owner[~valid].tolist(), label[~valid].tolist(), strict=True):
            self._wrong.setdefault(row, f"label {wrong} is outside 0..{classes - 1}")
        if not self._manifest.multi_label:
            single: npt.NDArray[np.int64] = label.astype(np.int64)
            return single
        labels = no_labels(len(table), self._manifest)
        labels[owner[valid], label[valid]] = 1
        return labels

    def _error(self, row: int, key: str, fault: Fault) -> BadSample:
        sample_id = int(self.ids[row])
        shard, _ = locate(self._manifest, sample_id)
        does = "has no class" if fault.reason == "mislabelled" else "does not decode"
        return BadSample(f"sample {sample_id} ({key}) of shard {shard} {does}: {fault.detail}")
