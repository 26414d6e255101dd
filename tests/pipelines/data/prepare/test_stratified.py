"""Held-out splits of samples with several classes or with groups."""

from __future__ import annotations

import numpy as np
import pytest

from infra.storage import LocalStore
from pipelines.data.prepare.label_sets import LabelSets, class_counts
from pipelines.data.prepare.sources.ranges import Ranges, whole_files
from pipelines.data.prepare.sources.stratified import stratified

CLASSES = 12


def samples(labels: list[int]) -> Ranges:
    files = [(f"{index:05d}.jpg", 1) for index in range(len(labels))]
    return whole_files(LocalStore(uri="/nowhere"), "train", files, labels)


def skewed(count: int, seed: int) -> tuple[list[int], LabelSets]:
    """Class k has a chance of 2^-k / 2; many images have several classes, some none."""
    has = np.random.default_rng(seed).random((count, CLASSES)) < 0.5 ** np.arange(1, CLASSES + 1)
    sets = [tuple(np.flatnonzero(row).tolist()) for row in has]
    distinct = sorted(set(sets))
    return [distinct.index(each) for each in sets], LabelSets.of(distinct)


@pytest.mark.parametrize("seed", range(3))
def test_every_class_gives_its_share(seed: int) -> None:
    labels, sets = skewed(2000, seed)
    mask = stratified(samples(labels), 0.2, seed, classes=CLASSES, sets=sets)
    numbers = np.array(labels, dtype=np.int32)
    total, held = (class_counts(part, CLASSES, sets) for part in (numbers, numbers[mask]))
    assert abs(mask.mean() - 0.2) < 0.01
    for each in range(CLASSES):
        if total[each] > 1:
            assert 1 <= held[each] < total[each]
            assert abs(held[each] - 0.2 * total[each]) <= max(1.0, 0.02 * total[each]), each


def test_the_order_of_the_samples_decides_nothing() -> None:
    labels, sets = skewed(300, 0)
    ordered = samples(labels)
    shuffled = np.random.default_rng(1).permutation(300)
    one = stratified(ordered, 0.1, 7, classes=CLASSES, sets=sets)
    other = stratified(ordered.take(shuffled), 0.1, 7, classes=CLASSES, sets=sets)
    assert np.array_equal(one[shuffled], other)
    assert not np.array_equal(one, stratified(ordered, 0.1, 8, classes=CLASSES, sets=sets))


def test_groups_of_any_size_stay_whole_and_keep_the_share() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 1000).tolist()
    groups = [f"g{int(number)}" for number in np.sort(rng.zipf(1.5, 1000) % 200)]
    mask = stratified(samples(labels), 0.2, 0, classes=3, groups=groups)
    held = {group for group, out in zip(groups, mask, strict=True) if out}
    assert held and not held & {group for group, out in zip(groups, mask, strict=True) if not out}
    for each in range(3):
        of_class = np.array(labels) == each
        assert 0.1 < mask[of_class].mean() < 0.3


def test_the_only_group_of_a_class_is_not_held_out() -> None:
    labels, groups = [0] * 10 + [1] * 2, ["a"] * 5 + ["b"] * 5 + ["c", "c"]
    mask = stratified(samples(labels), 0.2, 0, classes=2, groups=groups)
    assert mask.sum() == 5  # a or b: class 1 keeps its only group
    assert not mask[10:].any()
    assert not stratified(samples(labels), 0.2, 0, classes=2, groups=["a"] * 12).any()


def test_samples_without_a_group_are_on_their_own() -> None:
    mask = stratified(samples([0] * 50), 0.2, 0, classes=1, groups=[""] * 50)
    assert mask.sum() == 10
