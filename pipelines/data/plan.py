"""The plan: which rows are read together, in which order, over the whole run. Pure, seeded, numpy only.

An epoch is a permutation of all row groups by (seed, epoch), cut into work items of about `item_rows` rows; a task
shuffles the rows of its item together, so that batches mix row groups differently in every epoch. Where items begin and
how their rows are ordered does not depend on the ledger: a restart follows the same plan less what was done.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.data.ledger import Ledger
from pipelines.data.manifest import Manifest
from pipelines.data.rng import Purpose, permutation, stream

ITEM_ROWS = 512

Sizes = tuple[tuple[int, int], ...]
"""Crops by phase of the run: (its first sample, side in pixels), the first phase beginning at 0."""
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkItem:
    """What one data task does: read some row groups, shuffle their rows, leave some out, decode and crop the rest."""

    epoch: int
    pieces: tuple[tuple[int, int], ...]  # (index of the shard in the manifest, index of the row group in the shard)
    skip: bytes = b""  # packed bits over the pieces' rows in the order of `pieces`; empty = none is left out
    rows: int  # that are not left out
    image_size: int  # side of the crop, pixels

    def kept(self, total: int) -> Mask:
        """Mask over the `total` rows of the pieces: which are not left out."""
        if not self.skip:
            return np.ones(total, dtype=bool)
        left_out = np.unpackbits(np.frombuffer(self.skip, dtype=np.uint8), count=total).astype(bool)
        return ~left_out

    def to_row(self) -> dict[str, Any]:
        """The item as a row of a Ray dataset: columns of one type each."""
        flat = [index for piece in self.pieces for index in piece]
        return {
            "epoch": self.epoch,
            "pieces": flat,
            "skip": self.skip,
            "rows": self.rows,
            "image_size": self.image_size,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> WorkItem:
        """Inverse of `to_row`."""
        flat = [int(index) for index in row["pieces"]]
        return cls(
            epoch=int(row["epoch"]),
            pieces=tuple(zip(flat[::2], flat[1::2], strict=True)),
            skip=bytes(row["skip"]),
            rows=int(row["rows"]),
            image_size=int(row["image_size"]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that decides the order of a run's samples."""

    manifest: Manifest
    split: str
    seed: int
    total_samples: int  # of the whole run, from its first step; may end inside an epoch
    item_rows: int = ITEM_ROWS  # about how many rows one work item has
    sizes: Sizes

    def size_at(self, sample: int) -> int:
        """Side of the crop of an item that begins at the run's `sample`."""
        return self.sizes[bisect_right(self.sizes, sample, key=itemgetter(0)) - 1][1]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Groups:
    """The row groups of a split in id order, as columns."""

    shard: Ints
    group: Ints
    rows: Ints
    first: Ints  # ordinal of the group's first row
    total: int  # rows of the split

    @classmethod
    def of(cls, manifest: Manifest, split: str) -> _Groups:
        manifest.require_split(split)
        table = [
            (shard_index, group_index, group.rows)
            for shard_index, shard in enumerate(manifest.shards)
            if shard.split == split
            for group_index, group in enumerate(shard.groups)
        ]
        columns = np.array(table, dtype=np.int64).reshape(-1, 3)
        rows = columns[:, 2]
        total = int(rows.sum())
        return cls(shard=columns[:, 0], group=columns[:, 1], rows=rows, first=np.cumsum(rows) - rows, total=total)

    def ordinals(self, members: Ints) -> Ints:
        """Ordinals of the rows of these groups, group after group."""
        rows = self.rows[members]
        starts = np.cumsum(rows) - rows
        ordinals: Ints = np.arange(int(rows.sum())) + np.repeat(self.first[members] - starts, rows)
        return ordinals

    def items(self, order: Ints, item_rows: int) -> Iterator[tuple[int, Ints]]:
        """Cut an order of groups into items: (rows before the item, its groups)."""
        starts = np.cumsum(self.rows[order]) - self.rows[order]
        cuts = np.flatnonzero(np.diff(starts // item_rows)) + 1
        bounds = [0, *cuts.tolist(), len(order)]
        for begin, end in itertools.pairwise(bounds):
            yield int(starts[begin]), order[begin:end]

    def item(self, members: Ints, keep: Mask | None, *, epoch: int, image_size: int) -> WorkItem:
        pieces = tuple(zip(self.shard[members].tolist(), self.group[members].tolist(), strict=True))
        total = int(self.rows[members].sum())
        kept = total if keep is None else int(np.count_nonzero(keep))
        skip = b"" if keep is None or kept == total else np.packbits(~keep).tobytes()
        return WorkItem(epoch=epoch, pieces=pieces, skip=skip, rows=kept, image_size=image_size)


def rows_within(size_bytes: int, image_size: int, *, least: int, most: int) -> int:
    """How many uint8 RGB images of a side of `image_size` pixels make `size_bytes`, within bounds."""
    return max(least, min(most, size_bytes // (3 * image_size**2)))


def item_order(seed: int, epoch: int, ids: Ints) -> Ints:
    """The permutation that a task applies to all rows of its item, the left-out ones included."""
    return permutation(stream(seed, Purpose.ITEM, epoch, int(ids[0])), len(ids))


def plan_items(plan: Plan, ledger: Ledger) -> Iterator[WorkItem]:
    """The work that the ledger leaves of a plan, in the plan's order.

    Finished epochs and items wholly consumed are left out; of an item partly consumed the consumed rows are. Where
    `total_samples` ends inside an epoch, the epoch ends after its first so many rows.

    Raises:
        UserError: the data set has no such split.
        ValueError: the ledger is of another split.
    """
    groups = _Groups.of(plan.manifest, plan.split)
    if ledger.rows != groups.total:
        raise ValueError(f"the ledger has {ledger.rows} rows, split {plan.split} has {groups.total}")
    whole, rest = divmod(plan.total_samples, groups.total)
    for epoch in range(ledger.complete, whole):
        yield from _epoch_items(plan, groups, ledger, epoch, groups.total)
    if rest and ledger.complete <= whole:
        yield from _epoch_items(plan, groups, ledger, whole, rest)


def _epoch_items(plan: Plan, groups: _Groups, ledger: Ledger, epoch: int, limit: int) -> Iterator[WorkItem]:
    """Items of the first `limit` rows of an epoch, without the rows that the ledger has."""
    fresh = ~ledger.consumed(epoch)
    untouched = bool(fresh.all())
    order = permutation(stream(plan.seed, Purpose.EPOCH, epoch), len(groups.rows))
    for before, members in groups.items(order, plan.item_rows):
        if before >= limit:
            return
        inside = before + int(groups.rows[members].sum()) <= limit
        keep = None
        if not (untouched and inside):
            ordinals = groups.ordinals(members)
            keep = fresh[ordinals]
            if not inside:
                ids = ordinals + plan.manifest.split_start(plan.split)
                keep[item_order(plan.seed, epoch, ids)[limit - before :]] = False
            if not keep.any():
                continue
        size = plan.size_at(epoch * groups.total + before)
        yield groups.item(members, keep, epoch=epoch, image_size=size)


def eval_items(
    manifest: Manifest, split: str, rank: int, world_size: int, *, image_size: int, item_rows: int = ITEM_ROWS
) -> list[WorkItem]:
    """The items of one rank: every row of the split belongs to exactly one rank, shares differ by one row at most.

    Raises:
        UserError: the data set has no such split.
    """
    groups = _Groups.of(manifest, split)
    begin = rank * groups.total // world_size
    end = (rank + 1) * groups.total // world_size
    members = np.flatnonzero((groups.first < end) & (groups.first + groups.rows > begin))
    items = []
    for _, some in groups.items(members, item_rows) if begin < end else ():
        ordinals = groups.ordinals(some)
        keep = (ordinals >= begin) & (ordinals < end)
        items.append(groups.item(some, keep, epoch=0, image_size=image_size))
    return items
