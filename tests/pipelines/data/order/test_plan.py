from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import Plan, eval_items, item_order, plan_items, plan_tasks
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.work_item import WorkItem, from_text, to_text
from tests.pipelines.data.conftest import layout_only

LAYOUTS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=5)


def rows_of(manifest: Manifest, item: WorkItem, seed: int) -> list[int]:
    """Ids that a task yields for an item, in order: what load_item does, without reading anything."""
    ids: list[int] = []
    for shard_index, group_index in item.pieces:
        before = sum(shard.rows for shard in manifest.shards[:shard_index])
        before += sum(group.rows for group in manifest.shards[shard_index].groups[:group_index])
        ids += range(before, before + manifest.shards[shard_index].groups[group_index].rows)
    order = item_order(seed, item.epoch, np.array(ids))
    kept = item.kept(len(ids))
    return [ids[row] for row in order if kept[row]]


def stream(plan: Plan, ledger: Ledger) -> list[tuple[int, int]]:
    """(epoch, id) of all that is left, in the plan's order."""
    items = plan_items(plan, ledger)
    return [(item.epoch, sample) for item in items for sample in rows_of(plan.manifest, item, plan.seed)]


@settings(deadline=None, max_examples=150)
@given(train=LAYOUTS, epochs=st.integers(1, 4), extra=st.floats(0, 0.99), item_rows=st.integers(1, 20), data=st.data())
def test_any_number_of_kills_leaves_each_epoch_exact_and_in_order(
    train: list[list[int]], epochs: int, extra: float, item_rows: int, data: st.DataObject
) -> None:
    manifest = layout_only(train, test=[[3]])
    n = manifest.splits["train"]
    total = epochs * n + int(extra * n)
    plan = Plan(
        manifest=manifest, split="train", seed=data.draw(st.integers(0, 9)), total_samples=total, item_rows=item_rows,
        sizes=((0, 28),),
    )  # fmt: skip
    unbroken = stream(plan, Ledger(n))
    ledger, seen = Ledger(n), []
    while True:
        rest = stream(plan, ledger)
        assert rest == unbroken[len(seen) :]
        if not rest:
            break
        committed = rest[: data.draw(st.integers(1, len(rest)))]
        for epoch, group in itertools.groupby(committed, key=lambda pair: pair[0]):
            ledger.mark(epoch, np.array([sample for _, sample in group]))
        ledger = Ledger.from_arrays(ledger.to_arrays())
        seen += committed
    assert Counter(seen) == Counter(unbroken)
    assert max(Counter(seen).values()) == 1
    counts = Counter(epoch for epoch, _ in seen)
    assert [counts[epoch] for epoch in range(epochs)] == [n] * epochs
    assert counts[epochs] == total - epochs * n == total - sum(counts[epoch] for epoch in range(epochs))


@settings(deadline=None, max_examples=100)
@given(train=LAYOUTS, data=st.data())
def test_consumption_in_any_order_leaves_exactly_the_others(train: list[list[int]], data: st.DataObject) -> None:
    """Workers pull by demand: what is committed at a kill is no prefix of the plan."""
    manifest = layout_only(train)
    n = manifest.splits["train"]
    plan = Plan(manifest=manifest, split="train", seed=1, total_samples=2 * n, item_rows=7, sizes=((0, 28),))
    unbroken = stream(plan, Ledger(n))
    committed = data.draw(st.sets(st.sampled_from(unbroken)))
    ledger = Ledger(n)
    for epoch, sample in committed:
        ledger.mark(epoch, np.array([sample]))
    assert stream(plan, ledger) == [pair for pair in unbroken if pair not in committed]


def test_order_depends_on_seed_and_epoch_only() -> None:
    manifest = layout_only([[8, 8, 8], [8, 8, 5], [8, 8]])

    def order(seed: int) -> list[tuple[int, int]]:
        return stream(
            Plan(manifest=manifest, split="train", seed=seed, total_samples=122, item_rows=16, sizes=((0, 28),)),
            Ledger(61),
        )

    assert order(0) == order(0)
    assert order(0) != order(1)
    first, second = order(0)[:61], order(0)[61:]
    assert [epoch for epoch, _ in second] == [1] * 61
    assert [sample for _, sample in first] != [sample for _, sample in second]


def test_items_mix_shards_and_keep_to_their_size() -> None:
    manifest = layout_only([[64] * 20] * 50)
    items = list(
        plan_items(
            Plan(manifest=manifest, split="train", seed=0, total_samples=64_000, sizes=((0, 224),)), Ledger(64_000)
        )
    )
    assert len(items) == 125
    assert {item.rows for item in items} == {512}
    assert min(len({shard for shard, _ in item.pieces}) for item in items) >= 4
    assert items[3].skip == b""


def test_skip_bits_are_packed_in_reading_order() -> None:
    manifest = layout_only([[4, 4]])
    ledger = Ledger(8)
    ledger.mark(0, np.array([1, 2, 6]))
    plan = Plan(manifest=manifest, split="train", seed=0, total_samples=8, sizes=((0, 28),))
    (item,) = plan_items(plan, ledger)
    first_to_second = item.pieces == ((0, 0), (0, 1))
    assert item.skip == bytes([0b01100010 if first_to_second else 0b00100110])
    assert item.rows == 5


def test_ids_of_a_later_split_start_after_the_first() -> None:
    manifest = layout_only([[5]], test=[[3, 3]])
    plan = Plan(manifest=manifest, split="test", seed=0, total_samples=9, sizes=((0, 28),))
    assert sorted(stream(plan, Ledger(6))[:6]) == [(0, sample) for sample in range(5, 11)]
    assert manifest.split_start("test") == 5


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 100])
def test_evaluation_gives_every_row_to_one_rank(world_size: int) -> None:
    manifest = layout_only([[9]], test=[[13, 1, 20], [30, 6], [3]])
    shares = [
        [
            sample
            for item in eval_items(manifest, "test", rank, world_size, image_size=28, item_rows=16)
            for sample in rows_of(manifest, item, 0)
        ]
        for rank in range(world_size)
    ]
    assert sorted(itertools.chain(*shares)) == list(range(9, 82))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_unknown_split_and_foreign_ledger() -> None:
    manifest = layout_only([[4]])
    with pytest.raises(UserError, match="has no split 'test': it has train"):
        eval_items(manifest, "test", 0, 1, image_size=28)
    with pytest.raises(UserError, match=r"has no split 'Training' \(did you mean train\?\)"):
        eval_items(manifest, "Training", 0, 1, image_size=28)
    with pytest.raises(ValueError, match="5 rows, split train has 4"):
        list(plan_items(Plan(manifest=manifest, split="train", seed=0, total_samples=4, sizes=((0, 28),)), Ledger(5)))


def test_the_size_changes_at_the_exact_row() -> None:
    manifest = layout_only([[4, 4], [4, 4]], test=[[3]])
    sizes = ((0, 16), (10, 24), (32, 32))
    plan = Plan(manifest=manifest, split="train", seed=0, total_samples=40, item_rows=4, sizes=sizes)
    items = [(item.image_size, item.rows) for item in plan_items(plan, Ledger(16))]
    assert items == [(16, 4), (16, 4), (16, 2), (24, 2), *[(24, 4)] * 5, (32, 4), (32, 4)]
    one_size = dataclasses.replace(plan, sizes=((0, 16),))
    assert stream(plan, Ledger(16)) == stream(one_size, Ledger(16))
    ledger = Ledger(16)
    ledger.mark(0, np.arange(16))
    assert [(item.image_size, item.rows) for item in plan_items(plan, ledger)] == items[5:]


def test_exact_items_have_as_many_rows_whatever_the_row_groups_and_epochs() -> None:
    manifest = layout_only([[5, 3], [7, 2, 6]])  # 23 rows
    plan = Plan(
        manifest=manifest, split="train", seed=3, total_samples=61, item_rows=8, exact=True, sizes=((0, 28),)
    )  # fmt: skip
    tasks = list(plan_tasks(plan, Ledger(23)))
    assert [sum(item.rows for item in task) for task in tasks] == [8, 8, 8, 8, 8, 8, 8, 5]
    assert [[item.epoch for item in task] for task in tasks] == [[0], [0], [0, 1], [1], [1], [1, 2], [2], [2]]
    assert Counter(epoch for epoch, _ in stream(plan, Ledger(23))) == {0: 23, 1: 23, 2: 15}
    assert len(set(stream(plan, Ledger(23)))) == 61
    twice = [sum(item.rows for item in task) for task in plan_tasks(plan, Ledger(23), items_per_task=3)]
    assert twice == [24, 24, 13]


def test_the_plan_of_a_seed_is_the_same_for_ever() -> None:
    """A run that goes on after an upgrade must find its plan again: these values never change."""
    manifest = layout_only([[4, 4], [4, 4]])
    plan = Plan(manifest=manifest, split="train", seed=7, total_samples=24, item_rows=8, sizes=((0, 28),))
    assert [sample for _, sample in stream(plan, Ledger(16))] == [
        *(6, 13, 7, 5, 12, 15, 4, 14),
        *(1, 11, 9, 0, 10, 2, 3, 8),
        *(15, 10, 9, 8, 14, 13, 11, 12),
    ]


def test_a_task_survives_as_text() -> None:
    manifest = layout_only([[5, 3], [7, 2, 6]])
    ledger = Ledger(23)
    ledger.mark(0, np.array([1, 2, 6]))
    plan = Plan(manifest=manifest, split="train", seed=3, total_samples=61, item_rows=8, sizes=((0, 28),))
    tasks = list(plan_tasks(plan, ledger, items_per_task=2))
    assert [from_text(to_text(task)) for task in tasks] == tasks
    assert [item for task in tasks for item in task] == list(plan_items(plan, ledger))


def test_another_size_of_items_after_a_restart_still_ends_at_the_last_sample() -> None:
    """`data.task_mb` may change between restarts: the plan is another one then, and the ledger stays exact."""
    manifest = layout_only([[5, 3], [7, 2, 6]])
    plan = Plan(manifest=manifest, split="train", seed=0, total_samples=12, item_rows=3, sizes=((0, 28),))
    begun = stream(plan, Ledger(23))[:7]
    ledger = Ledger(23)
    ledger.mark(0, np.array([sample for _, sample in begun]))
    rest = stream(dataclasses.replace(plan, item_rows=16), ledger)
    assert len({*begun, *rest}) == 12 == len(begun) + len(rest)
