"""The plan: which rows are read together, in which order, over the whole run. Pure, seeded, numpy only.

An epoch is a permutation of all row groups by (seed, epoch), cut into work items of about `item_rows` rows; a task
shuffles the rows of its item together, so that batches mix row groups differently in every epoch. Where items begin and
how their rows are ordered does not depend on the ledger: a restart follows the same plan less what was done. One epoch
is held at a time, and none of it as objects.
"""

from __future__ import annotations

import itertools
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from pipelines.data.ledger import Ledger
from pipelines.data.manifest import Manifest
from pipelines.data.rng import Purpose, permutation, stream

FILLER = -1
"""Id and epoch of a row that is no sample."""

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


def to_text(items: Iterable[WorkItem]) -> str:
    """What one task does, as JSON: the row of a Ray dataset."""
    return json.dumps([[i.epoch, i.pieces, i.skip.hex(), i.rows, i.image_size] for i in items], separators=(",", ":"))


def from_text(text: str) -> list[WorkItem]:
    """Inverse of `to_text`."""
    return [
        WorkItem(
            epoch=epoch,
            pieces=tuple((shard, group) for shard, group in pieces),
            skip=bytes.fromhex(skip),
            rows=rows,
            image_size=image_size,
        )
        for epoch, pieces, skip, rows, image_size in json.loads(text)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that decides the order of a run's samples."""

    manifest: Manifest
    split: str
    seed: int
    total_samples: int  # of the whole run, from its first step; may end inside an epoch
    item_rows: int = ITEM_ROWS  # that one work item has, about
    exact: bool = False
    """Items of exactly `item_rows` rows, counted from the run's first: cut within row groups and epochs if need be."""
    sizes: Sizes

    def size_at(self, sample: int) -> int:
        """Side of the crop of the run's `sample`."""
        return self.sizes[bisect_right(self.sizes, sample, key=itemgetter(0)) - 1][1]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Groups:
    """The row groups of a split in id order, as columns."""

    shard: npt.NDArray[np.int32]
    group: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    first: Ints  # ordinal of the group's first row
    total: int  # rows of the split

    @classmethod
    def of(cls, manifest: Manifest, split: str) -> _Groups:
        manifest.require_split(split)
        shard, group, rows = manifest.columns.groups_of(split)
        ends = np.cumsum(rows, dtype=np.int64)
        return cls(shard=shard, group=group, rows=rows, first=ends - rows, total=int(ends[-1]))

    def ordinals(self, members: Ints) -> Ints:
        """Ordinals of the rows of these groups, group after group."""
        rows = self.rows[members]
        starts = np.cumsum(rows) - rows
        ordinals: Ints = np.arange(int(rows.sum())) + np.repeat(self.first[members] - starts, rows)
        return ordinals

    def item(self, members: Ints, keep: Mask | None, *, epoch: int, image_size: int) -> WorkItem:
        pieces = tuple(zip(self.shard[members].tolist(), self.group[members].tolist(), strict=True))
        total = int(self.rows[members].sum())
        kept = total if keep is None else int(np.count_nonzero(keep))
        skip = b"" if keep is None or kept == total else np.packbits(~keep).tobytes()
        return WorkItem(epoch=epoch, pieces=pieces, skip=skip, rows=kept, image_size=image_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cut:
    """A stretch of the rows of some groups, one group after another."""

    begin: int  # its first row, of all rows of the order that it is cut from
    end: int
    members: Ints  # the groups that it lies in
    offset: int  # its first row, of the members' rows

    @property
    def rows(self) -> int:
        return self.end - self.begin


def _cuts(groups: _Groups, order: Ints, edges: Ints) -> Iterator[_Cut]:
    """The stretches between consecutive `edges` of the rows of all groups in this order."""
    rows = groups.rows[order]
    ends = np.cumsum(rows, dtype=np.int64)
    starts = ends - rows
    low = np.searchsorted(ends, edges[:-1], side="right")
    high = np.searchsorted(starts, edges[1:], side="left")
    offsets = edges[:-1] - starts[low]
    for begin, end, first, last, offset in zip(edges[:-1], edges[1:], low, high, offsets, strict=True):
        yield _Cut(begin=int(begin), end=int(end), members=order[first:last], offset=int(offset))


def _group_edges(groups: _Groups, order: Ints, item_rows: int) -> Ints:
    """Edges of items of whole groups: an item begins with the group that holds the next multiple of `item_rows`."""
    rows = groups.rows[order]
    starts = np.cumsum(rows, dtype=np.int64) - rows
    begins = starts[1:][np.diff(starts // item_rows) > 0]
    return np.concatenate([[0], begins, [groups.total]])


def rows_within(size_bytes: int, image_size: int, *, least: int, most: int) -> int:
    """How many uint8 RGB images of a side of `image_size` pixels make `size_bytes`, within bounds."""
    return max(least, min(most, size_bytes // (3 * image_size**2)))


def item_order(seed: int, epoch: int, ids: Ints) -> Ints:
    """The permutation that a task applies to all rows of its item, the left-out ones included."""
    return permutation(stream(seed, Purpose.ITEM, epoch, int(ids[0])), len(ids))


def plan_items(plan: Plan, ledger: Ledger) -> Iterator[WorkItem]:
    """The work that the ledger leaves of a plan, in the plan's order.

    Finished epochs and items wholly consumed are left out; of an item partly consumed the consumed rows are. Rows on
    the two sides of a change of size are two items. Where `total_samples` ends inside an epoch, the epoch ends as soon
    as it has so many rows, those that it has seen already among them.

    Raises:
        UserError: the data set has no such split.
        ValueError: the ledger is of another split.
    """
    return (item for _, item in _located_items(plan, ledger))


def plan_tasks(plan: Plan, ledger: Ledger, items_per_task: int = 1) -> Iterator[list[WorkItem]]:
    """The items of `plan_items` by task: so many each; or, where they are exact, those of as many times `item_rows`."""
    if plan.exact:
        rows = plan.item_rows * items_per_task
        for _, found in itertools.groupby(_located_items(plan, ledger), key=lambda located: located[0] // rows):
            yield [item for _, item in found]
        return
    items = plan_items(plan, ledger)
    while part := list(itertools.islice(items, items_per_task)):
        yield part


def _located_items(plan: Plan, ledger: Ledger) -> Iterator[tuple[int, WorkItem]]:
    """Items, each with the run's sample at which it would begin if the ledger were empty."""
    groups = _Groups.of(plan.manifest, plan.split)
    if ledger.rows != groups.total:
        raise ValueError(f"the ledger has {ledger.rows} rows, split {plan.split} has {groups.total}")
    for epoch in range(ledger.complete, -(-plan.total_samples // groups.total)):
        yield from _Epoch(plan=plan, groups=groups, ledger=ledger, number=epoch).items()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Epoch:
    """One epoch of a plan."""

    plan: Plan
    groups: _Groups
    ledger: Ledger
    number: int

    @property
    def first(self) -> int:
        """The run's sample at which it begins."""
        return self.number * self.groups.total

    def items(self) -> Iterator[tuple[int, WorkItem]]:
        """What the ledger leaves of it."""
        limit = min(self.groups.total, self.plan.total_samples - self.first)
        left = limit - self.ledger.count(self.number)
        order = permutation(stream(self.plan.seed, Purpose.EPOCH, self.number), len(self.groups.rows))
        marked = self._marked(order)
        for cut in _cuts(self.groups, order, self._edges(order)):
            if left <= 0:
                return
            seen = 0 if marked is None else int(marked[cut.members].sum())
            if seen == int(self.groups.rows[cut.members].sum()):
                continue
            for item in self._items_of(cut, left, untouched=not seen):
                yield self.first + cut.begin, item
                left -= item.rows

    def _marked(self, order: Ints) -> Ints | None:
        """Rows of each group that were seen; None where there are none at all."""
        return self.ledger.counts(self.number, self.groups.first) if self.ledger.count(self.number) else None

    def _edges(self, order: Ints) -> Ints:
        if not self.plan.exact:
            return _group_edges(self.groups, order, self.plan.item_rows)
        inner = np.arange(-self.first % self.plan.item_rows, self.groups.total, self.plan.item_rows)
        return np.concatenate([[0], inner[inner > 0], [self.groups.total]])

    def _items_of(self, cut: _Cut, left: int, *, untouched: bool) -> Iterator[WorkItem]:
        """The cut's rows: those that were not seen, `left` of them at most, by image size."""
        begin = self.first + cut.begin
        changes = [sample - begin for sample, _ in self.plan.sizes if 0 < sample - begin < cut.rows]
        total = int(self.groups.rows[cut.members].sum())
        if untouched and not changes and cut.rows <= left:
            keep = None
            if cut.rows < total:
                keep = np.zeros(total, dtype=bool)
                keep[cut.offset : cut.offset + cut.rows] = True
            yield self.groups.item(cut.members, keep, epoch=self.number, image_size=self.plan.size_at(begin))
            return
        ordinals = self.groups.ordinals(cut.members)
        ids = ordinals + self.plan.manifest.split_start(self.plan.split)
        rows = item_order(self.plan.seed, self.number, ids)
        rows = rows[(rows >= cut.offset) & (rows < cut.offset + cut.rows)]
        fresh = ~self.ledger.marked(self.number, ordinals[rows])
        fresh &= np.cumsum(fresh) <= left
        for low, high in itertools.pairwise([0, *changes, cut.rows]):
            keep = np.zeros(total, dtype=bool)
            keep[rows[low:high][fresh[low:high]]] = True
            if keep.any():
                yield self.groups.item(cut.members, keep, epoch=self.number, image_size=self.plan.size_at(begin + low))


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
    if begin == end:
        return []
    order = np.arange(len(groups.rows))
    edges = _group_edges(groups, order, item_rows)
    edges = np.concatenate([[begin], edges[(edges > begin) & (edges < end)], [end]])
    items = []
    for cut in _cuts(groups, order, edges):
        keep = np.zeros(int(groups.rows[cut.members].sum()), dtype=bool)
        keep[cut.offset : cut.offset + cut.rows] = True
        items.append(groups.item(cut.members, keep, epoch=0, image_size=image_size))
    return items
