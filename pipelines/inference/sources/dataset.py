"""Images of a data set that prepare.py wrote; their labels are not used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from infra.storage import Store
from pipelines.data.images.stored import Stored
from pipelines.data.order.plan import eval_items
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.reader import Reader
from pipelines.data.shards.work_item import WorkItem
from pipelines.inference.sources.images import SourcePart, UnlabelledImage

_PART_ROWS = 512  # approximate: a row group is never split


@dataclass(frozen=True, kw_only=True)  # no slots: `_items` is cached in the instance
class DatasetImages:
    """Images of some splits of a data set. Every row group is verified when it is read."""

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
    def parts(self) -> Sequence[SourcePart]:
        return list(self._items)

    def read(self, part: SourcePart) -> Iterator[UnlabelledImage]:
        item = self._items[part]
        fetched = Reader(store=self.store, manifest=self.manifest, tolerant=True).fetch(item)
        ids, keys, records = (fetched.table[name] for name in ("id", "key", "image"))
        for row in np.flatnonzero(item.kept(len(ids))).tolist():
            fault = fetched.faults.get(row)
            record = memoryview(records[row].as_buffer()).cast("B")  # Arrow's bytes are signed
            yield UnlabelledImage(ids[row].as_py(), keys[row].as_py(), record, str(fault) if fault else "")

    @cached_property
    def _items(self) -> dict[SourcePart, WorkItem]:
        items: dict[SourcePart, WorkItem] = {}
        first = 0
        for split in self.splits:
            for item in eval_items(self.manifest, split, 0, 1, image_size=1, item_rows=_PART_ROWS):
                items[SourcePart(first=first, rows=item.rows)] = item
                first += item.rows
        return items
