"""Images that are byte ranges of stored objects: whole files, members of tars, values copied out of Parquet.

Every column is an array: the ranges of 1.28 million images take about 90 MB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from pipelines.data.prepare.source import Labels, Positions, SourceSample
from pipelines.data.prepare.sources.names import Names
from pipelines.data.shards.stored_images import MAX_RECORD_BYTES

if TYPE_CHECKING:
    from infra.storage import Store

_FETCHES = 16  # parallel requests per task: object storage has a high latency


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranges:
    """The samples of one split, as byte ranges. Any process that can reach the store can read them."""

    store: Store
    split: str
    objects: Names  # paths in the store
    object: npt.NDArray[np.int32]  # each sample's object, as an index into `objects`
    starts: npt.NDArray[np.int64]  # each sample's offset in its object, bytes
    sizes: npt.NDArray[np.int64]  # bytes
    labels: Labels
    keys: Names

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def mean_bytes(self) -> float:
        return float(self.sizes.mean())

    def key(self, position: int) -> str:
        return self.keys[position]

    def take(self, positions: Positions, split: str = "") -> Ranges:
        used, objects = np.unique(self.object[positions], return_inverse=True)
        return Ranges(
            store=self.store,
            split=split or self.split,
            objects=self.objects.take(used.astype(np.int64)),
            object=objects.astype(np.int32),
            starts=self.starts[positions],
            sizes=self.sizes[positions],
            labels=self.labels[positions],
            keys=self.keys.take(positions),
        )

    def read(self) -> Iterator[SourceSample]:
        """Fetch every range once, by ascending offset, then yield the samples in order. All are in memory together."""
        ascending = np.lexsort((self.starts, self.object)).tolist()
        if self.store.is_remote:
            with ThreadPoolExecutor(_FETCHES) as pool:
                fetched = dict(zip(ascending, pool.map(self._fetch, ascending), strict=True))
        else:
            fetched = {position: self._fetch(position) for position in ascending}
        for position in range(len(self)):
            yield self._sample(position, fetched.pop(position))

    def _sample(self, position: int, image: bytes) -> SourceSample:
        size = int(self.sizes[position])
        refusal = f"{size:,} bytes are more than {MAX_RECORD_BYTES:,}" if size > MAX_RECORD_BYTES else ""
        label, key = int(self.labels[position]), self.keys[position]
        return SourceSample(image=image, label=label, key=key, split=self.split, refusal=refusal)

    def _fetch(self, position: int) -> bytes:
        path = self.objects[int(self.object[position])]
        start, size = int(self.starts[position]), int(self.sizes[position])
        if size > MAX_RECORD_BYTES:
            return b""
        try:
            data = self.store.read(path, start=start, length=size)
        except OSError as error:
            why = error.strerror or "No such file"
            raise UserError(f"{self.store.description}/{path} cannot be read: {why}") from error
        if len(data) != size:
            raise UserError(
                f"{self.store.description}/{path} has changed since it was listed: {self.keys[position]} has "
                f"{len(data):,} bytes, {size:,} were listed: run prepare again"
            )
        return data


def whole_files(store: Store, split: str, files: Sequence[tuple[str, int]], labels: Sequence[int]) -> Ranges:
    """Make samples from whole files, given as (path, bytes). The path is also the key."""
    paths = Names.of(path for path, _ in files)
    return Ranges(
        store=store,
        split=split,
        objects=paths,
        object=np.arange(len(files), dtype=np.int32),
        starts=np.zeros(len(files), dtype=np.int64),
        sizes=np.array([size for _, size in files], dtype=np.int64),
        labels=np.array(labels, dtype=np.int32),
        keys=paths,
    )


def fingerprint(splits: Mapping[str, Ranges], *also: bytes) -> str:
    """Return the sha256 of the keys and sizes of all splits, and of `also`. The location is not part of it."""
    digest = hashlib.sha256()
    for split, ranges in splits.items():
        for key, size in zip(ranges.keys, ranges.sizes.tolist(), strict=True):
            digest.update(f"{split}\0{key}\0{size}\n".encode())
    for data in also:
        digest.update(data)
    return digest.hexdigest()
