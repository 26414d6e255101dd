"""A run without Ray: plan, blocks, workers that pull by demand, steps, commits, kills, other numbers of workers.

What is simulated is what Ray leaves open: which tasks run at the same time, whose block comes next, who gets it.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.order.draws import Balanced
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import Drawn, Plan, plan_items, plan_tasks
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.work_item import WorkItem
from pipelines.training.batches import Steps
from pipelines.training.ordered import Chunks, chunked, task_rows
from tests.pipelines.data.conftest import layout_only

FILLER = -1
WORLD_SIZES = (1, 2, 3, 4, 5, 6)
DIVIDING = (1, 2, 3, 4, 6)  # a batch, so that every worker has as much of each step
Row = tuple[int, int, int]  # epoch, id (of a balanced plan: number of the draw), side of the image
LAYOUTS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=6)


def ids_of(manifest: Manifest, item: WorkItem) -> list[int]:
    """Ids of all rows of an item's pieces, in the order of the pieces."""
    ids: list[int] = []
    for shard, group in item.pieces:
        first = sum(each.rows for each in manifest.shards[:shard])
        first += sum(each.rows for each in manifest.shards[shard].groups[:group])
        ids += range(first, first + manifest.shards[shard].groups[group].rows)
    return ids


def rows_of(plan: Plan, item: WorkItem) -> list[Row]:
    """What `load_item` yields for an item, in order."""
    drawn = Drawn.of(item, np.array(ids_of(plan.manifest, item)), plan.seed)
    rows = [(item.epoch, draw, item.image_size) for draw in drawn.draw.tolist()]
    assert len(rows) == item.rows
    return rows


def unbroken(plan: Plan) -> list[Row]:
    """The whole run in the plan's order."""
    items = plan_items(plan, Ledger(plan.manifest.splits["train"]))
    return [row for item in items for row in rows_of(plan, item)]


@dataclass(kw_only=True)
class Simulation:
    """One run, over several lives."""

    plan: Plan
    global_batch: int
    chance: random.Random
    block_rows: int
    ordered: bool = False
    base: int = 0
    trained: list[list[list[Row]]] = field(default_factory=list)
    """Of every step committed: what each worker had."""

    def __post_init__(self) -> None:
        self.rows = self.plan.manifest.splits["train"]
        self.ledger = Ledger(self.rows)
        self.total_steps = max(1, self.plan.total_samples // self.global_batch)

    def live(self, world_size: int, killed_after: int, every: int, items_per_task: int = 1) -> bool:
        """Train until `killed_after` more steps are done, committing each `every`; true where the run ended first."""
        parts = [deque(part) for part in self._split(world_size, items_per_task)]
        assert len({len(part) for part in parts}) == 1 and parts[0]
        steps = Steps(
            total_samples=self.plan.total_samples,
            total_steps=self.total_steps,
            global_batch_size=self.global_batch,
            world_size=world_size,
            microbatch_size=0,
            chunk_rows=self._chunks(world_size).rows,
        )
        # With fewer rows of a step than workers, one may have filler for more than its last step: that step is short,
        # and what it lacks comes in the run's last, in this life or a later one.
        whole = sum(len(share) for step in self.trained for share in step) == self.base * self.global_batch
        whole = whole and world_size <= min(steps.rows(rank, 0) for rank in range(world_size))
        done: list[list[list[Row]]] = []
        for done_steps, step in enumerate(range(self.base, self.total_steps)):
            if done_steps == killed_after:
                return False
            last = step == self.total_steps - 1
            counts = [len(part) if last else steps.rows(rank, done_steps) for rank, part in enumerate(parts)]
            shares = [take(part, count) for part, count in zip(parts, counts, strict=True)]
            if whole:
                assert sum(map(len, shares)) == steps.count(step)
            done.append(shares)
            if last or (done_steps + 1) % every == 0:
                self._commit(done)
                done = []
        return True

    def _commit(self, steps: list[list[list[Row]]]) -> None:
        rows = [row for step in steps for share in step for row in share]
        for epoch in sorted({row[0] for row in rows}):
            self.ledger.mark(epoch, np.array([row[1] for row in rows if row[0] == epoch]))
        self.ledger = Ledger.from_arrays(self.ledger.to_arrays())
        self.trained += steps
        self.base += len(steps)

    def _split(self, world_size: int, items_per_task: int) -> list[list[Row]]:
        """What each worker receives."""
        tasks = [
            [row for item in items for row in rows_of(self.plan, item)]
            for items in plan_tasks(self.plan, self.ledger, items_per_task)
        ]
        if self.ordered:
            return self._in_turn(tasks, world_size)
        rest = sum(map(len, tasks))
        missing = self._chunks(world_size).missing(rest)
        tasks.append([(FILLER, FILLER, 0)] * missing)
        return self._by_demand(list(self._arriving(tasks)), world_size)

    def _chunks(self, world_size: int) -> Chunks:
        if not self.ordered:
            return Chunks(rows=1, world_size=world_size)
        return Chunks.of(self.global_batch, self.plan.item_rows, world_size, self.block_rows)

    def _in_turn(self, tasks: list[list[Row]], world_size: int) -> list[list[Row]]:
        chunks = self._chunks(world_size)
        dealt = [
            list(zip(*(block[name].tolist() for name in ("epoch", "id", "size")), strict=True))
            for task in tasks
            for block in chunked(self._blocks(task), chunks.rows, filler)
        ]
        dealt += [[(FILLER, FILLER, 0)] * chunks.rows] * chunks.missing(len(dealt))
        assert {len(chunk) for chunk in dealt} == {chunks.rows}
        return [list(itertools.chain(*dealt[rank::world_size])) for rank in range(world_size)]

    def _blocks(self, rows: list[Row]) -> Iterator[dict[str, np.ndarray]]:
        """Blocks of some rows of one image size each, wherever a task happens to cut them."""
        for size, part in itertools.groupby(rows, key=lambda row: row[2]):
            same = list(part)
            while same:
                cut = self.chance.randint(1, len(same))
                epochs, ids, _ = np.array(same[:cut]).T
                yield {
                    "epoch": epochs, "id": ids, "size": np.full(cut, size), "image": np.zeros((cut, 1, 1, 3))
                }  # fmt: skip
                same = same[cut:]

    def _arriving(self, tasks: list[list[Row]]) -> Iterator[list[Row]]:
        """Blocks as they come when some tasks run at once, each at its own pace."""
        waiting, running = deque(tasks), []
        while waiting or running:
            while waiting and len(running) < 3:
                running.append(deque(waiting.popleft()))
            task = self.chance.choice(running)
            block = [task.popleft() for _ in range(min(self.block_rows, len(task)))]
            if not task:
                running.remove(task)
            if block:
                yield block

    def _by_demand(self, blocks: list[list[Row]], world_size: int) -> list[list[Row]]:
        """Any block to any worker, then evened out as Ray's equal split does."""
        parts: list[list[Row]] = [[] for _ in range(world_size)]
        for block in blocks:
            self.chance.choice(parts).extend(block)
        share = sum(map(len, parts)) // world_size
        over = [row for part in parts for row in part[share:]]
        for part in parts:
            del part[share:]
            while len(part) < share:
                part.append(over.pop())
        assert not over
        return parts


def take(part: deque[Row], count: int) -> list[Row]:
    """What `Feed` makes of a worker's rows: samples first, then filler."""
    taken = [row for row in part if row[1] != FILLER][:count]
    rest = [row for row in part if row[1] != FILLER][count:]
    spare = len(part) - len(rest) - count
    assert spare >= 0
    part.clear()
    part.extend(rest + [(FILLER, FILLER, 0)] * spare)
    return taken


def filler(rows: int, side: int) -> dict[str, np.ndarray]:
    """Rows that are no samples, in the form of `Simulation._blocks`."""
    nothing = np.full(rows, FILLER)
    return {"epoch": nothing, "id": nothing, "size": np.full(rows, side), "image": np.zeros((rows, 1, 1, 3))}


def _balanced(rows: int) -> Balanced:
    """Three classes, of which one has a tenth of the images."""
    return Balanced(labels=np.random.default_rng(rows).choice(3, rows, p=[0.6, 0.3, 0.1]), passes=3)


@st.composite
def plans(draw: st.DrawFn, global_batch: int) -> Plan:
    """Any shards, row groups, seeds and curricula; the run ends wherever it does."""
    manifest = layout_only(draw(LAYOUTS), test=[[3]])
    rows = manifest.splits["train"]
    total = draw(st.integers(1, max(1, 4 * rows)))
    starts = draw(st.sets(st.integers(1, max(1, total // global_batch)), max_size=3))
    sizes = ((0, 32), *((step * global_batch, 40 + 8 * n) for n, step in enumerate(sorted(starts))))
    return Plan(
        manifest=manifest,
        split="train",
        seed=draw(st.integers(0, 2**32)),
        total_samples=total,
        balanced=draw(st.sampled_from([None, _balanced(rows)])),
        item_rows=draw(st.integers(1, 100)),
        sizes=sizes,
    )


BATCH = 12  # does not divide by every number of workers


ANY_LIFE = st.one_of(st.integers(0, 5), st.integers(0, 200))
SHORT_LIFE = st.integers(1, 6)


def run_to_the_end(
    run: Simulation,
    data: st.DataObject,
    lives: st.SearchStrategy[int] = ANY_LIFE,
    item_rows: st.SearchStrategy[int] | None = None,
) -> None:
    """Lives of so many steps, with any number of workers, until the last step is done."""
    for _ in range(200):
        world_size = data.draw(st.sampled_from(WORLD_SIZES), label="workers")
        killed_after = data.draw(lives, label="killed after")
        every = data.draw(st.integers(1, 4), label="steps between checkpoints")
        before = run.base
        if run.live(world_size, killed_after, every, data.draw(st.integers(1, 4), label="items of a task")):
            return
        assert before <= run.base <= before + killed_after
        if item_rows is not None:
            run.plan = replace(run.plan, item_rows=data.draw(item_rows, label="rows of an item"))
    assert run.live(1, 10**9, 1)


@settings(deadline=None, max_examples=120)
@given(plan=plans(BATCH), data=st.data())
def test_every_epoch_is_exact_whatever_happens(plan: Plan, data: st.DataObject) -> None:
    run = Simulation(plan=plan, global_batch=BATCH, chance=random.Random(data.draw(st.integers(0, 99))), block_rows=7)
    run_to_the_end(run, data)
    rows = [row for step in run.trained for share in step for row in share]
    assert Counter(rows) == Counter(unbroken(plan))  # every sample of every epoch once, at the size of its position
    assert len({row[:2] for row in rows}) == len(rows) == plan.total_samples
    complete, rest = divmod(plan.total_samples, run.rows)
    assert (run.ledger.complete, run.ledger.total) == (complete, plan.total_samples)
    counts = Counter(row[0] for row in rows)
    assert counts == {**dict.fromkeys(range(complete), run.rows), **({complete: rest} if rest else {})}


@settings(deadline=None, max_examples=80)
@given(plan=plans(BATCH), data=st.data())
def test_every_epoch_is_exact_also_where_tasks_change_their_size_between_lives(plan: Plan, data: st.DataObject) -> None:
    run = Simulation(plan=plan, global_batch=BATCH, chance=random.Random(data.draw(st.integers(0, 99))), block_rows=7)
    run_to_the_end(run, data, SHORT_LIFE, item_rows=st.integers(1, 100))
    rows = [row[:2] for step in run.trained for share in step for row in share]
    assert len(set(rows)) == len(rows) == plan.total_samples
    complete, rest = divmod(plan.total_samples, run.rows)
    counts = Counter(epoch for epoch, _ in rows)
    assert counts == {**dict.fromkeys(range(complete), run.rows), **({complete: rest} if rest else {})}


@settings(deadline=None, max_examples=80)
@given(plan=plans(BATCH), data=st.data())
def test_in_order_each_step_is_the_next_of_the_plan_whatever_happens(plan: Plan, data: st.DataObject) -> None:
    plan = replace(plan, exact=True, item_rows=task_rows(BATCH, plan.item_rows))
    run = Simulation(
        plan=plan,
        global_batch=BATCH,
        chance=random.Random(data.draw(st.integers(0, 99))),
        block_rows=data.draw(st.integers(1, 20)),
        ordered=True,
    )
    run_to_the_end(run, data)
    rest = iter(unbroken(plan))
    for step in run.trained[:-1]:
        assert sorted(row for share in step for row in share) == sorted(itertools.islice(rest, BATCH))
        assert len({len(share) for share in step}) == 1 or BATCH % len(step)
    assert sorted(row for share in run.trained[-1] for row in share) == sorted(rest)
    sizes = [{row[2] for share in step for row in share} for step in run.trained[:-1]]
    assert all(len(step) == 1 for step in sizes)  # no step has images of two sizes


@settings(deadline=None, max_examples=60)
@given(plan=plans(BATCH), world_size=st.sampled_from(DIVIDING), data=st.data())
def test_in_order_each_worker_goes_on_where_it_was(plan: Plan, world_size: int, data: st.DataObject) -> None:
    """With the same number of workers, a killed run has the same batches in the same order as an unbroken one."""
    plan = replace(plan, exact=True, item_rows=task_rows(BATCH, plan.item_rows))
    straight, broken = (
        Simulation(plan=plan, global_batch=BATCH, chance=random.Random(seed), block_rows=5, ordered=True)
        for seed in (0, data.draw(st.integers(1, 99)))
    )
    assert straight.live(world_size, 10**9, 3)
    while not broken.live(world_size, data.draw(st.integers(1, 40)), data.draw(st.integers(1, 3))):
        pass
    assert broken.trained == straight.trained


@pytest.mark.parametrize(
    ("step_rows", "wanted", "rows", "chunks"),
    [
        (256, 222, 256, {1: 32, 2: 32, 4: 32, 8: 32, 16: 16}),
        (1024, 222, 256, {1: 32, 8: 32, 32: 32, 64: 16}),
        (64, 8192, 8192, {1: 32, 2: 32}),
        (1000, 222, 200, {1: 25, 4: 25, 8: 25, 20: 25}),
        (96, 222, 192, {1: 24, 3: 32, 4: 24}),
        (997, 222, 997, {1: 1}),
    ],
)
def test_tasks_and_chunks_divide_steps(step_rows: int, wanted: int, rows: int, chunks: dict[int, int]) -> None:
    assert task_rows(step_rows, wanted) == rows
    assert {world: Chunks.of(step_rows, rows, world, 27).rows for world in chunks} == chunks
