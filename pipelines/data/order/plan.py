"""The plan: which rows are read together, and in which order, over the whole run. Pure, seeded, numpy only.

An epoch is a permutation of all row groups by (seed, epoch), cut into work items of about `item_rows` rows. A task
shuffles all rows of its item together, so batches mix row groups differently in every epoch. The bounds of an item and
the order of its rows do not depend on the ledger. A resume therefore follows the same plan, minus the consumed samples.
Only one epoch is in memory at a time, as arrays.

With balanced sampling (`pipelines.data.order.draws`), an epoch goes over the row groups several times, and takes the
draws of one pass from each. A part of a row group then has the draws of one pass; ordinals are numbers of draws.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from pipelines.data.order.draws import Balanced, EpochDraws
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.rng import Purpose, permutation, stream
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.work_item import Mask, WorkItem, packed_draws, unpacked_draws

FILLER = -1
"""Id and epoch of a filler row, which is not a sample."""

ITEM_ROWS = 512

Sizes = tuple[tuple[int, int], ...]
"""Crop sizes by phase of the run: (first sample of the phase, side in pixels). The first phase begins at sample 0."""
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All settings that decide the order of a run's samples."""

    manifest: Manifest
    split: str
    seed: int
    total_samples: int  # samples of the whole run, from its first step; the last epoch may be incomplete
    item_rows: int = ITEM_ROWS  # approximate rows per work item
    exact: bool = False
    """Items have exactly `item_rows` rows, counted from the run's first row. Cuts may lie inside row groups."""
    sizes: Sizes
    balanced: Balanced | None = None  # None = every image once an epoch

    def size_at(self, sample: int) -> int:
        """Return the side of the crop at the run's sample number `sample`."""
        return self.sizes[bisect_right(self.sizes, sample, key=itemgetter(0)) - 1][1]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Groups:
    """The row groups of a split in id order, or their draws in each pass, stored as columns."""

    shard: npt.NDArray[np.int32]
    group: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    first: Ints  # ordinal of the group's first row
    total: int  # rows of the split
    split_start: int  # id of the split's first row
    passes: Ints  # ends of the passes: numbers of groups

    @classmethod
    def of(cls, manifest: Manifest, split: str) -> _Groups:
        manifest.require_split(split)
        shard, group, rows = manifest.columns.groups_of(split)
        ends = np.cumsum(rows, dtype=np.int64)
        return cls(
            shard=shard,
            group=group,
            rows=rows,
            first=ends - rows,
            total=int(ends[-1]),
            split_start=manifest.split_start(split),
            passes=np.array([len(rows)]),
        )

    def order(self, seed: int, epoch: int) -> Ints:
        """Return the order of the groups in an epoch: a permutation of those of each pass."""
        begins = np.concatenate([[0], self.passes[:-1]])
        parts = [
            begin + permutation(stream(seed, Purpose.EPOCH, epoch, index), end - begin)
            for index, (begin, end) in enumerate(zip(begins.tolist(), self.passes.tolist(), strict=True))
        ]
        return np.concatenate(parts)

    def ordinals(self, members: Ints) -> Ints:
        """Return the ordinals of the rows of these groups, group after group."""
        rows = self.rows[members]
        starts = np.cumsum(rows) - rows
        ordinals: Ints = np.arange(int(rows.sum())) + np.repeat(self.first[members] - starts, rows)
        return ordinals

    def item(self, members: Ints, keep: Mask | None, *, epoch: int, image_size: int) -> WorkItem:
        pieces = tuple(zip(self.shard[members].tolist(), self.group[members].tolist(), strict=True))
        total = int(self.rows[members].sum())
        kept = total if keep is None else int(np.count_nonzero(keep))
        skip = b"" if keep is None or kept == total else np.packbits(~keep).tobytes()
        draws = self.draws(members)
        return WorkItem(epoch=epoch, pieces=pieces, skip=skip, rows=kept, image_size=image_size, draws=draws)

    def draws(self, members: Ints) -> bytes:
        """Return the draws of these groups (`packed_draws`); b"" for rows that are read once."""
        return b""


@dataclass(frozen=True, kw_only=True, slots=True)
class _DrawGroups(_Groups):
    """The draws of an epoch by pass and row group."""

    whole: _Groups  # the row groups of the split
    source: Ints  # index of the row group in `whole`
    table: EpochDraws

    @classmethod
    def drawn(cls, whole: _Groups, table: EpochDraws) -> _DrawGroups:
        count = len(whole.rows)
        turn = np.searchsorted(table.ends, np.arange(len(table.row)), side="right")
        places = turn * count + np.searchsorted(whole.first, table.row, side="right") - 1
        found, rows = np.unique(places, return_counts=True)
        source = found % count
        return cls(
            shard=whole.shard[source],
            group=whole.group[source],
            rows=rows.astype(np.int32),
            first=np.cumsum(rows) - rows,
            total=whole.total,
            split_start=whole.split_start,
            passes=np.searchsorted(found, count * np.arange(1, len(table.ends) + 1)),
            whole=whole,
            source=source,
            table=table,
        )

    def draws(self, members: Ints) -> bytes:
        numbers, source = self.ordinals(members), self.source[members]
        ends = np.cumsum(self.whole.rows[source], dtype=np.int64)
        begins = ends - self.whole.rows[source] - self.whole.first[source]  # of the pieces' rows in the item
        row = self.table.row[numbers] + np.repeat(begins, self.rows[members])
        return packed_draws(row, self.table.copy[numbers], numbers + self.split_start)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cut:
    """A contiguous part of the rows of an ordered list of groups."""

    begin: int  # first row, counted over all groups in their order
    end: int
    members: Ints  # the groups that contain the part
    offset: int  # first row, counted over the rows of `members`

    @property
    def rows(self) -> int:
        return self.end - self.begin


def _cuts(groups: _Groups, order: Ints, edges: Ints) -> Iterator[_Cut]:
    """Cut the rows of all groups, in this order, at `edges`."""
    rows = groups.rows[order]
    ends = np.cumsum(rows, dtype=np.int64)
    starts = ends - rows
    low = np.searchsorted(ends, edges[:-1], side="right")
    high = np.searchsorted(starts, edges[1:], side="left")
    offsets = edges[:-1] - starts[low]
    for begin, end, first, last, offset in zip(edges[:-1], edges[1:], low, high, offsets, strict=True):
        yield _Cut(begin=int(begin), end=int(end), members=order[first:last], offset=int(offset))


def _group_edges(groups: _Groups, order: Ints, item_rows: int) -> Ints:
    """Return the edges of items of whole groups.

    An item begins at the first group that starts at or after the next multiple of `item_rows`.
    """
    rows = groups.rows[order]
    starts = np.cumsum(rows, dtype=np.int64) - rows
    begins = starts[1:][np.diff(starts // item_rows) > 0]
    return np.concatenate([[0], begins, [groups.total]])


def rows_within(size_bytes: int, image_size: int, *, least: int, most: int) -> int:
    """Return how many uint8 RGB images with sides of `image_size` pixels fit in `size_bytes`, within [least, most]."""
    return max(least, min(most, size_bytes // (3 * image_size**2)))


def item_order(seed: int, epoch: int, ids: Ints) -> Ints:
    """Return the permutation that a task applies to all rows (or draws) of its item, skipped ones included."""
    return permutation(stream(seed, Purpose.ITEM, epoch, int(ids[0])), len(ids))


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """The samples that a task yields of an item, in its order; each column is int64 [n]."""

    row: Ints  # index in the item's rows
    draw: Ints  # the id, or with balanced sampling the number of the draw: the ledger marks it
    copy: Ints  # repetitions of the image in the epoch before this one

    @classmethod
    def of(cls, item: WorkItem, ids: Ints, seed: int, *, shuffled: bool = True) -> Drawn:
        """Return the samples of an item whose rows have these ids. Evaluation reads rows in id order instead."""
        row, copy, draw = unpacked_draws(item.draws) if item.draws else (np.arange(len(ids)), np.zeros_like(ids), ids)
        order = item_order(seed, item.epoch, draw) if shuffled else np.arange(len(draw))
        order = order[item.kept(len(draw))[order]]
        return cls(row=row[order], draw=draw[order], copy=copy[order])

    def part(self, begin: int, end: int) -> Drawn:
        """Return the samples from `begin` up to `end`."""
        return Drawn(row=self.row[begin:end], draw=self.draw[begin:end], copy=self.copy[begin:end])


def plan_items(plan: Plan, ledger: Ledger) -> Iterator[WorkItem]:
    """Return the items of the plan without the samples that the ledger has marked, in the plan's order.

    Finished epochs and fully consumed items are skipped. A partly consumed item keeps its other rows. A change of the
    crop size inside an item splits it in two. If `total_samples` ends inside an epoch, that epoch ends when its rows,
    consumed ones included, reach the limit.

    Raises:
        UserError: the data set has no such split.
        ValueError: the ledger belongs to a split of another size.
    """
    return (item for _, item in _located_items(plan, ledger))


def plan_tasks(plan: Plan, ledger: Ledger, items_per_task: int = 1) -> Iterator[list[WorkItem]]:
    """Group the items of `plan_items` by task: `items_per_task` items each.

    If the plan is exact, a task instead gets the items of `items_per_task * item_rows` consecutive rows of the run.
    """
    if plan.exact:
        rows = plan.item_rows * items_per_task
        for _, found in itertools.groupby(_located_items(plan, ledger), key=lambda located: located[0] // rows):
            yield [item for _, item in found]
        return
    items = plan_items(plan, ledger)
    while part := list(itertools.islice(items, items_per_task)):
        yield part


def _located_items(plan: Plan, ledger: Ledger) -> Iterator[tuple[int, WorkItem]]:
    """Yield (sample, item); sample is the run's sample at which the item begins if the ledger is empty."""
    groups = _Groups.of(plan.manifest, plan.split)
    if ledger.rows != groups.total:
        raise ValueError(f"the ledger has {ledger.rows} rows, split {plan.split} has {groups.total}")
    for epoch in range(ledger.complete, -(-plan.total_samples // groups.total)):
        drawn = _DrawGroups.drawn(groups, plan.balanced.epoch(plan.seed, epoch)) if plan.balanced else groups
        yield from _Epoch(plan=plan, groups=drawn, ledger=ledger, number=epoch).items()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Epoch:
    """One epoch of a plan."""

    plan: Plan
    groups: _Groups
    ledger: Ledger
    number: int

    @property
    def first(self) -> int:
        """Return the run's sample at which the epoch begins."""
        return self.number * self.groups.total

    def items(self) -> Iterator[tuple[int, WorkItem]]:
        """Yield (sample, item) for the rows of this epoch that the ledger has not marked."""
        limit = min(self.groups.total, self.plan.total_samples - self.first)
        left = limit - self.ledger.count(self.number)
        order = self.groups.order(self.plan.seed, self.number)
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
        """Return how many rows of each group are marked; None if no row of the epoch is."""
        return self.ledger.counts(self.number, self.groups.first) if self.ledger.count(self.number) else None

    def _edges(self, order: Ints) -> Ints:
        if not self.plan.exact:
            return _group_edges(self.groups, order, self.plan.item_rows)
        inner = np.arange(-self.first % self.plan.item_rows, self.groups.total, self.plan.item_rows)
        return np.concatenate([[0], inner[inner > 0], [self.groups.total]])

    def _items_of(self, cut: _Cut, left: int, *, untouched: bool) -> Iterator[WorkItem]:
        """Yield items with the unmarked rows of a cut, at most `left` rows, one item per image size."""
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
        ids = ordinals + self.groups.split_start
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
    """Return the items that one rank evaluates.

    Every row of the split belongs to exactly one rank. The numbers of rows differ by at most 1 between ranks.

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
