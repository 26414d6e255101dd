"""The images of a data set of ours, whose labels do not matter here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from infra.storage import Store
from pipelines.data.manifest import Manifest, Stored
from pipelines.data.plan import WorkItem, eval_items
from pipelines.data.read import Reader
from pipelines.data.unlabelled.images import Part, Picture

_PART_ROWS = 512  # about: a row group is never cut


@dataclass(frozen=True, kw_only=True)  # no slots: the items are made once and kept
class DatasetImages:
    """Some splits of a data set, every row group verified when it is read."""

    store: Store
    manifest: Manifest
    splits: tuple[str, ...]

    @property
    def description(self) -> str:
        return f"data set {self.manifest.name}, {' and '.join(self.splits)}"

    @property
    def fingerprint(self) -> str:
        return f"{self.manifest.digest} {' '.join(self.splits)}"

    @property
    def stored(self) -> Stored:
        return self.manifest.stored

    @property
    def parts(self) -> Sequence[Part]:
        return list(self._items)

    def read(self, part: Part) -> Iterator[Picture]:
        item = self._items[part]
        fetched = Reader(store=self.store, manifest=self.manifest, tolerant=True).fetch(item)
        ids, keys, records = (fetched.table[name] for name in ("id", "key", "image"))
        for row in np.flatnonzero(item.kept(len(ids))).tolist():
            fault = fetched.faults.get(row)
            record = memoryview(records[row].as_buffer()).cast("B")  # Arrow's bytes have signs
            yield Picture(ids[row].as_py(), keys[row].as_py(), record, str(fault) if fault else "")

    @cached_property
    def _items(self) -> dict[Part, WorkItem]:
        items: dict[Part, WorkItem] = {}
        first = 0
        for split in self.splits:
            for item in eval_items(self.manifest, split, 0, 1, image_size=1, item_rows=_PART_ROWS):
                items[Part(first=first, rows=item.rows)] = item
                first += item.rows
        return items
