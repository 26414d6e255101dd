"""The shards of a manifest, stored as columns: 10^9 images have millions of row groups.

Row groups as objects take 1.2 kB each, and every data task would unpickle all of them (80 ms for ImageNet's 23,000).
Columns take 48 bytes per row group, and Ray maps them into a task's memory without a copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

_SPAN = [("start", "<i8"), ("length", "<u4"), ("sha256", "V32")]
GROUP = np.dtype([*_SPAN, ("rows", "<u4")])
SHARD = np.dtype(
    [("split", "<u2"), ("rows", "<i8"), ("bytes", "<i8"), ("sha256", "V32"), ("footer", _SPAN), ("groups", "<u4")]
)

Records = npt.NDArray[np.void]


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, start + length) of a shard."""

    start: int
    length: int
    sha256: str  # of these bytes


@dataclasses.dataclass(frozen=True, slots=True)
class RowGroup(Span):
    """A Parquet row group: the unit that is fetched, verified and shuffled."""

    rows: int


class RowGroups(Sequence[RowGroup]):
    """A sequence of row groups, of one shard or of all shards in order, stored as columns."""

    def __init__(self, records: Records) -> None:
        self.records = records

    @classmethod
    def of(cls, groups: Iterable[RowGroup]) -> RowGroups:
        """Convert row groups to columns."""
        if isinstance(groups, RowGroups):
            return groups
        packed = [(group.start, group.length, bytes.fromhex(group.sha256), group.rows) for group in groups]
        return cls(np.array(packed, dtype=GROUP))

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Return the number of rows of each row group."""
        return self.records["rows"].astype(np.int64)

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> RowGroup: ...
    @overload
    def __getitem__(self, index: slice) -> RowGroups: ...
    def __getitem__(self, index: int | slice) -> RowGroup | RowGroups:
        if isinstance(index, slice):
            return RowGroups(self.records[index])
        start, length, sha256, rows = self.records[index].tolist()
        return RowGroup(start, length, sha256.hex(), rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowGroups) and np.array_equal(self.records, other.records)

    def __hash__(self) -> int:
        return hash(self.records.tobytes())

    def __repr__(self) -> str:
        return f"RowGroups({len(self)})"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A Parquet file of a data set."""

    path: str  # relative to the data set's root
    split: str
    rows: int
    bytes: int
    sha256: str  # hash of the whole file
    footer: Span
    groups: Sequence[RowGroup]  # becomes RowGroups

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", RowGroups.of(self.groups))

    def to_record(self) -> dict[str, Any]:
        """Return plain JSON values. Spans become lists, so that a manifest of 20,000 row groups has 2 MB."""
        plain = {name: getattr(self, name) for name in ("path", "split", "rows", "bytes", "sha256")}
        footer, groups = dataclasses.astuple(self.footer), [dataclasses.astuple(group) for group in self.groups]
        return {**plain, "footer": list(footer), "groups": [list(group) for group in groups]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Shard:
        """Read the result of `to_record`."""
        groups = tuple(RowGroup(*group) for group in record["groups"])
        return cls(**{**record, "footer": Span(*record["footer"]), "groups": groups})


class ShardTable(Sequence[Shard]):
    """The shards of a data set, stored as a few large columns, which processes share without a copy."""

    def __init__(self, splits: Sequence[str], paths: npt.NDArray[np.bytes_], records: Records, groups: Records) -> None:
        self._splits = tuple(splits)
        self._paths = paths
        self._records = records
        self._groups = groups
        self._ends = np.concatenate([[0], np.cumsum(records["groups"], dtype=np.int64)])

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> ShardTable:
        """Convert shards to columns."""
        if isinstance(shards, ShardTable):
            return shards
        splits: dict[str, int] = {}
        paths, records, parts = [], [], [np.empty(0, dtype=GROUP)]
        for shard in shards:
            groups = RowGroups.of(shard.groups).records
            footer = (shard.footer.start, shard.footer.length, bytes.fromhex(shard.footer.sha256))
            split = splits.setdefault(shard.split, len(splits))
            paths.append(shard.path.encode())
            records.append((split, shard.rows, shard.bytes, bytes.fromhex(shard.sha256), footer, len(groups)))
            parts.append(groups)
        return cls(list(splits), np.array(paths, dtype=bytes), np.array(records, dtype=SHARD), np.concatenate(parts))

    def groups_of(self, split: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return columns for the row groups of a split, in id order: (index of the shard, index in the shard, rows)."""
        counts = np.diff(self._ends)
        wanted = np.repeat(self.in_split(split), counts)
        shard = np.repeat(np.arange(len(self), dtype=np.int32), counts)
        group = (np.arange(len(self._groups)) - np.repeat(self._ends[:-1], counts)).astype(np.int32)
        return shard[wanted], group[wanted], self._groups["rows"][wanted].astype(np.int32)

    def in_split(self, split: str) -> npt.NDArray[np.bool_]:
        """Return a mask of the shards that belong to a split."""
        number = self._splits.index(split) if split in self._splits else -1
        return np.asarray(self._records["split"].astype(np.int64) == number)

    @property
    def nbytes(self) -> int:
        """Return the memory of the columns, in bytes."""
        return sum(column.nbytes for column in self._columns)

    @property
    def total_bytes(self) -> int:
        """Return the size of all shards, in bytes."""
        return int(self._records["bytes"].sum())

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> ShardTable: ...
    def __getitem__(self, index: int | slice) -> Shard | ShardTable:
        if isinstance(index, slice):
            return ShardTable.of(self[place] for place in range(*index.indices(len(self))))
        place = range(len(self))[index]
        split, rows, size, sha256, (start, length, footer_sha256), _ = self._records[place].tolist()
        return Shard(
            path=self._paths[place].decode(),
            split=self._splits[split],
            rows=rows,
            bytes=size,
            sha256=sha256.hex(),
            footer=Span(start, length, footer_sha256.hex()),
            groups=RowGroups(self._groups[self._ends[place] : self._ends[place + 1]]),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ShardTable) or self._splits != other._splits:
            return False
        pairs = zip(self._columns, other._columns, strict=True)
        return all(np.array_equal(ours, theirs) for ours, theirs in pairs)

    def __hash__(self) -> int:
        return hash(self._records.tobytes())

    def __repr__(self) -> str:
        return f"ShardTable({len(self)})"

    @property
    def _columns(self) -> tuple[npt.NDArray[Any], ...]:
        return self._paths, self._records, self._groups, self._ends
