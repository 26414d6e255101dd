"""The reader of shards: row groups, verified against the manifest before they are parsed.

Memory, in addition to the returned rows: one copy of each row group until it is parsed, and 16 MiB of footers.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

from infra.errors import UserError
from pipelines.data.shards.bad_records import Fault
from pipelines.data.shards.byte_ranges import FileRange, SpanReader

if TYPE_CHECKING:
    import pyarrow as pa

    from infra.storage import Store
    from pipelines.data.shards.disk_cache import SpanCache
    from pipelines.data.shards.manifest import Manifest, Shard
    from pipelines.data.shards.work_item import WorkItem

MAX_GROUP_BYTES = 64 * 2**20
"""Largest row group that is fetched. prepare writes row groups of 6 MiB, or of one larger image."""
_FOOTERS_BYTES = 16 * 2**20  # footers kept per process: enough for 3,000 shards of 128 MiB with JPEGs

Piece = tuple["Shard", int]
"""A shard, and the index of one of its row groups."""


def schema(multi_label: bool) -> pa.Schema:
    """Return the columns of a shard: image (binary), label (int32), id (int64), key (string).

    A multi-label shard has labels (list of int32, ascending class indices) instead of label.
    """
    import pyarrow as pa

    label = ("labels", pa.list_(pa.int32())) if multi_label else ("label", pa.int32())
    return pa.schema([("image", pa.binary()), label, ("id", pa.int64()), ("key", pa.string())])


class IntegrityError(UserError):
    """Stored bytes differ from those that prepare wrote."""


class OversizedError(UserError):
    """A row group is larger than any that prepare writes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchedRows:
    """The rows of a work item."""

    table: pa.Table
    """The columns of `schema`."""
    faults: Mapping[int, Fault] = field(default_factory=dict)
    """Faults of unreadable rows, by index in the table. Only the ids of these rows are valid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """A reader of the work items of a data set."""

    store: Store
    manifest: Manifest
    cache: SpanCache | None = None
    tolerant: bool = False
    """True: an unreadable row group is returned as faults. False: it is an error."""

    def fetch(self, item: WorkItem) -> FetchedRows:
        """Fetch all rows of an item's pieces, in the order of the pieces.

        Raises:
            UserError: a shard is missing.
            IntegrityError: a byte range differs from the manifest, and `tolerant` is False.
            OversizedError: a row group exceeds `MAX_GROUP_BYTES`, and `tolerant` is False.
        """
        import pyarrow as pa

        if not item.pieces:
            return FetchedRows(table=_unread(0, 0, self.manifest))
        pieces = [(self.manifest.shards[shard], group) for shard, group in item.pieces]
        tables: list[pa.Table] = []
        faults: dict[int, Fault] = {}
        first = 0
        for (shard, group), rows in zip(pieces, _read(SpanReader(self.store, self.cache), pieces), strict=True):
            count = shard.groups[group].rows
            if isinstance(rows, Fault) and not self.tolerant:
                raise _error(self.store, shard, rows)
            if isinstance(rows, Fault):
                faults |= dict.fromkeys(range(first, first + count), rows)
                rows = _unread(self._first_id(*item.pieces[len(tables)]), count, self.manifest)
            tables.append(rows)
            first += count
        return FetchedRows(table=pa.concat_tables(tables), faults=faults)

    def take_warning(self) -> str:
        """Return the warning of the cache, once per process; else ""."""
        return self.cache.take_warning() if self.cache else ""

    def _first_id(self, shard: int, group: int) -> int:
        """Return the first id of a piece. Ids are dense, so they are known even if the rows are unreadable."""
        before = sum(each.rows for each in self.manifest.shards[:shard])
        return before + sum(each.rows for each in self.manifest.shards[shard].groups[:group])

    def ahead(self, items: Sequence[WorkItem]) -> Iterator[tuple[WorkItem, Future[FetchedRows]]]:
        """Yield the items in order with their rows. The next item is fetched while the caller works on this one."""
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        try:
            under_way = [pool.submit(self.fetch, item) for item in items[:1]]
            for following, item in enumerate(items, 1):
                present = under_way.pop()
                under_way += [pool.submit(self.fetch, after) for after in items[following : following + 1]]
                yield item, present
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def read_rows(store: Store, shard: Shard, groups: Sequence[int]) -> pa.Table:
    """Read some row groups of a shard, in the given order.

    Returns:
        The columns of `schema`.

    Raises:
        UserError: the shard is missing.
        IntegrityError: a byte range differs from the manifest, even when fetched again.
        OversizedError: a row group has more than `MAX_GROUP_BYTES`.
    """
    import pyarrow as pa

    tables = _read(SpanReader(store), [(shard, group) for group in groups])
    for rows in tables:
        if isinstance(rows, Fault):
            raise _error(store, shard, rows)
    return pa.concat_tables(tables)


def _read(spans: SpanReader, pieces: Sequence[Piece]) -> list[pa.Table | Fault]:
    """Return the rows of each piece, or its fault. Footers and row groups are fetched in parallel."""
    shards = {shard.path: shard for shard, _ in pieces}
    footers = {path: _footers.get(shard.footer.sha256) for path, shard in shards.items()}
    parts = [FileRange(shard, shard.footer, "footer") for path, shard in shards.items() if not footers[path]]
    parts += [
        FileRange(shard, shard.groups[group], f"row group {group}")
        for shard, group in pieces
        if shard.groups[group].length <= MAX_GROUP_BYTES
    ]
    found = {(part.shard.path, part.span.start): data for part, data in zip(parts, spans.fetch(parts), strict=True)}
    tables = []
    for shard, group in pieces:
        footer = footers[shard.path] or found[shard.path, shard.footer.start]
        tables.append(_rows(shard, group, footer, found.get((shard.path, shard.groups[group].start))))
    return tables


def _rows(shard: Shard, group: int, footer: memoryview | Fault, data: memoryview | Fault | None) -> pa.Table | Fault:
    import pyarrow as pa
    import pyarrow.parquet as pq

    span = shard.groups[group]
    if data is None:
        return Fault("oversized", f"row group {group} has {span.length:,} bytes, more than {MAX_GROUP_BYTES:,}")
    if isinstance(footer, Fault):
        return footer
    if isinstance(data, Fault):
        return data
    _footers.keep(shard.footer.sha256, footer)
    metadata = pq.read_metadata(pa.BufferReader(footer))
    with pq.ParquetFile(pa.PythonFile(ByteWindow(data, span.start), mode="r"), metadata=metadata) as file:
        return file.read_row_groups([group], use_threads=False)


def _error(store: Store, shard: Shard, fault: Fault) -> UserError:
    where = f"shard {shard.path} in {store.description}"
    if fault.reason == "unreadable":
        return IntegrityError(f"{where}: {fault.detail}: restore the shard or prepare again")
    return OversizedError(f"{where}: {fault.detail}: prepare again without its largest image")


def _unread(first_id: int, count: int, manifest: Manifest) -> pa.Table:
    """Return placeholder rows for unreadable ones. Only their ids are known."""
    import pyarrow as pa

    label: dict[str, list[Any]] = {"labels": [[]] * count} if manifest.multi_label else {"label": [0] * count}
    columns = {"image": [b""] * count, **label, "id": range(first_id, first_id + count), "key": [""] * count}
    return pa.table(columns, schema=schema(manifest.multi_label))


class ByteWindow(io.RawIOBase):
    """A file with only some bytes of a shard. Parquet's offsets stay valid, and nothing is copied."""

    def __init__(self, data: memoryview, start: int) -> None:
        self._data, self._start, self._at = data, start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        ends = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._start + len(self._data)}
        self._at = ends[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> memoryview:
        begin = self._at - self._start
        data = self._data[begin : begin + size]
        self._at += len(data)
        return data


class _Footers:
    """The footers of the shards that this process read last. Each cached footer saves a request."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._by_hash: OrderedDict[str, memoryview] = OrderedDict()
        self._bytes = 0

    def get(self, sha256: str) -> memoryview | None:
        with self._lock:
            if sha256 in self._by_hash:
                self._by_hash.move_to_end(sha256)
            return self._by_hash.get(sha256)

    def keep(self, sha256: str, footer: memoryview) -> None:
        with self._lock:
            if sha256 not in self._by_hash:
                self._by_hash[sha256] = memoryview(bytes(footer))  # a view would keep the whole response
                self._bytes += len(footer)
            while self._bytes > _FOOTERS_BYTES:
                self._bytes -= len(self._by_hash.popitem(last=False)[1])


_footers = _Footers()
