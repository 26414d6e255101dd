"""The ledger: exact to the sample, small in memory and in a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.order.bitset import BitSet
from pipelines.data.order.ledger import EpochCount, Ledger


def test_a_sample_marked_twice_is_an_error_and_leaves_the_ledger_as_it_was() -> None:
    ledger = Ledger(10)
    ledger.mark(0, np.array([3, 4]))
    for bad, message in (
        ([4, 5], "sample 4 is marked twice"),
        ([6, 6], "sample 6 is marked twice"),
        ([10], "are not within 0..9"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ledger.mark(0, np.array(bad))
    assert ledger.report() == {0: EpochCount(once=2, never=8)}
    ledger.mark(1, np.array([4]))
    assert ledger.total == 3


def test_finished_epochs_collapse_even_when_they_finish_out_of_order() -> None:
    ledger = Ledger(4)
    ledger.mark(1, np.arange(4))
    assert ledger.complete == 0
    ledger.mark(0, np.arange(4))
    assert ledger.complete == 2
    assert list(ledger.to_arrays()) == ["counters"]
    with pytest.raises(RuntimeError, match="twice"):
        ledger.mark(0, np.array([0]))
    assert ledger.report() == {0: EpochCount(4, 0), 1: EpochCount(4, 0)}
    assert ledger.total == 8


def test_it_survives_storage_as_plain_bytes() -> None:
    ledger = Ledger(11)
    ledger.mark(0, np.array([0, 1, 2, 3, 4]))
    ledger.mark(2, np.array([10]))
    arrays = ledger.to_arrays()
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.uint8)}
    restored = Ledger.from_arrays(arrays)
    assert restored.report() == {0: EpochCount(5, 6), 2: EpochCount(1, 10)}
    assert np.flatnonzero(restored.consumed(0)).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="epoch 0: sample 1 is marked twice"):
        restored.mark(0, np.array([7, 1]))


def test_the_first_form_of_a_checkpoint_is_still_read() -> None:
    """Bits of every open epoch, most significant first."""
    arrays = {
        "counters": np.array([12, 3], dtype="<i8").view(np.uint8),
        "epoch_000003": np.array([0b10000001, 0b01100000], dtype=np.uint8),
    }
    ledger = Ledger.from_arrays(arrays)
    assert (ledger.complete, ledger.total) == (3, 40)
    assert np.flatnonzero(ledger.consumed(3)).tolist() == [0, 7, 9, 10]


def test_whole_row_groups_are_stored_as_runs() -> None:
    """ImageNet half-way: every other of its 23,000 groups, by chance, of 55 rows; and what is under way."""
    groups = np.flatnonzero(np.random.default_rng(0).random(23_294) < 0.5)
    ledger = Ledger(1_281_167)
    ordinals = (groups[:, None] * 55 + np.arange(55)).ravel()
    ordinals = ordinals[ordinals < ledger.rows]
    ledger.mark(4, ordinals)
    arrays = ledger.to_arrays()
    assert (ledger.nbytes, [*arrays]) == (160_146, ["counters", "runs_000004"])
    assert arrays["runs_000004"].nbytes < 20_000
    assert Ledger.from_arrays(arrays).count(4) == ledger.count(4) == len(ordinals)


MASKS = st.one_of(
    st.lists(st.booleans(), min_size=1, max_size=200),
    st.lists(st.tuples(st.booleans(), st.integers(1, 400)), min_size=1, max_size=30).map(
        lambda runs: [member for member, length in runs for _ in range(length)]
    ),
)


@settings(deadline=None, max_examples=200)
@given(mask=MASKS, data=st.data())
def test_bits_count_store_and_find_what_a_plain_mask_does(mask: list[bool], data: st.DataObject) -> None:
    plain = np.array(mask)
    bits = BitSet(len(plain), np.packbits(plain))
    assert bits.unpacked().tolist() == mask
    assert bits.count == plain.sum()
    assert bits.has(np.arange(len(plain))).tolist() == mask
    first = np.array(sorted({0, *data.draw(st.lists(st.integers(0, len(plain) - 1), max_size=20))}))
    assert bits.counts(first).tolist() == np.add.reduceat(plain.astype(int), first).tolist()
    runs = bits.to_runs()
    if runs is not None:
        assert len(runs) < len(bits.packed)
        again = BitSet.from_runs(len(plain), runs)
        assert (again.packed.tolist(), again.count) == (bits.packed.tolist(), bits.count)
