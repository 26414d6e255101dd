from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.order.draws import Balanced
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import Drawn, Plan, plan_items, plan_tasks
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.work_item import WorkItem, from_text, to_text
from tests.pipelines.data.conftest import layout_only

LAYOUTS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=5)


def drawn_of(manifest: Manifest, item: WorkItem, seed: int) -> list[tuple[int, int, int]]:
    """(id, copy, draw) of each sample of an item, in a task's order."""
    ids: list[int] = []
    for shard, group in item.pieces:
        before = sum(each.rows for each in manifest.shards[:shard])
        before += sum(each.rows for each in manifest.shards[shard].groups[:group])
        ids += range(before, before + manifest.shards[shard].groups[group].rows)
    found = Drawn.of(item, np.array(ids), seed)
    return list(zip([ids[row] for row in found.row], found.copy.tolist(), found.draw.tolist(), strict=True))


def stream(plan: Plan, ledger: Ledger) -> list[tuple[int, tuple[int, int, int]]]:
    items = [again for part in plan_tasks(plan, ledger, 2) for again in from_text(to_text(part))]
    assert items == list(plan_items(plan, ledger))
    samples = [(item.epoch, sample) for item in items for sample in drawn_of(plan.manifest, item, plan.seed)]
    assert len(samples) == sum(item.rows for item in items)
    return samples


@settings(deadline=None, max_examples=40)
@given(
    train=LAYOUTS,
    exact=st.booleans(),
    power=st.sampled_from([0.0, 0.5, 1.0]),
    passes=st.integers(1, 4),
    item_rows=st.integers(1, 20),
    data=st.data(),
)
def test_every_draw_of_an_epoch_comes_once_whatever_was_trained_before(
    train: list[list[int]], exact: bool, power: float, passes: int, item_rows: int, data: st.DataObject
) -> None:
    manifest = layout_only(train, test=[[3]])
    n = manifest.splits["train"]
    labels = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    balanced = Balanced(labels=labels, power=power, passes=passes)
    plan = Plan(
        manifest=manifest, split="train", seed=data.draw(st.integers(0, 9)), total_samples=2 * n + n // 2,
        item_rows=item_rows, exact=exact, sizes=((0, 28), (n // 3, 32)), balanced=balanced,
    )  # fmt: skip
    unbroken = stream(plan, Ledger(n))
    quotas, repeated = balanced.quotas(), np.zeros(n, dtype=np.int64)
    for epoch in (0, 1):
        own = [sample for number, sample in unbroken if number == epoch]
        assert sorted(draw for _, _, draw in own) == list(range(n))
        assert Counter(labels[image] for image, _, _ in own) == Counter(dict(enumerate(quotas.tolist()))) - Counter()
        assert len({(image, copy) for image, copy, _ in own}) == n
        repeated += np.bincount([image for image, _, _ in own], minlength=n)
        for label in np.unique(labels):
            assert np.ptp(repeated[labels == label]) <= 1
    rest, ledger, seen = unbroken, Ledger(n), []
    while rest:
        committed = data.draw(st.sets(st.sampled_from(rest), min_size=1)) if not exact else rest[: len(rest) // 2 + 1]
        for epoch in {epoch for epoch, _ in committed}:
            ledger.mark(epoch, np.array([draw for number, (_, _, draw) in committed if number == epoch]))
        ledger = Ledger.from_arrays(ledger.to_arrays())
        seen += committed
        rest = stream(plan, ledger)
        if exact:
            assert rest == unbroken[len(seen) :]
    assert len(seen) == len(set(seen)) == len(unbroken)
    assert {sample for sample in seen if sample[0] < 2} == {sample for sample in unbroken if sample[0] < 2}


def test_a_class_is_gone_through_before_any_of_its_images_comes_again() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    balanced = Balanced(labels=labels)
    assert balanced.quotas().tolist() == [50, 50]
    common = [balanced.repetitions(3, epoch)[:90] for epoch in range(9)]
    assert np.ptp(sum(common)) == 0  # 9 epochs of 50 draws are 5 turns of 90 images
    assert np.ptp(sum(common[:2])) == 2 - 1  # 100 draws: all 90 once, 10 twice
    assert balanced.repetitions(3, 4)[90:].tolist() == [5] * 10


def test_the_draws_of_a_seed_are_the_same_for_ever() -> None:
    balanced = Balanced(labels=np.array([0, 0, 0, 1, 0, -1, 0, 1]), passes=2)
    table = balanced.epoch(7, 1)
    assert balanced.quotas().tolist() == [4, 4]
    assert (table.row.tolist(), table.copy.tolist(), table.ends.tolist()) == (
        [2, 3, 7, 0, 1, 2, 3, 7],
        [1, 0, 0, 0, 0, 0, 1, 1],
        [3, 8],
    )


def test_power_one_draws_every_image_once_and_half_lies_between() -> None:
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    assert Balanced(labels=labels, power=1.0).quotas().tolist() == [900, 90, 10]
    assert set(Balanced(labels=labels, power=1.0).repetitions(0, 5).tolist()) == {1}
    assert Balanced(labels=labels, power=0.5).quotas().tolist() == [703, 223, 74]


def test_repetitions_are_spread_over_the_passes() -> None:
    labels = np.array([0] * 392 + [1] * 8)
    table = Balanced(labels=labels, passes=5).epoch(0, 0)
    begins = np.concatenate([[0], table.ends[:-1]])
    for begin, end in zip(begins, table.ends, strict=True):
        rare = table.row[begin:end] >= 392
        assert rare.sum() == 8 * 5  # 25 draws of each rare image: 5 in every pass
        assert abs((~rare).sum() - 40) < 25
