"""A worker's end of the stream: exact shares, a remainder in the last step, nothing counted twice."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from infra.errors import UserError
from pipelines.data.order.plan import FILLER
from pipelines.training.batches import RankBatches, Steps
from pipelines.training.side_stream import SideStream
from tests.pipelines.fake_cuda import FakeCuda

CPU = torch.device("cpu")


@pytest.fixture(params=["on the training thread", "one ahead"], autouse=True)
def way(request, monkeypatch):
    """Every test holds in both ways in which a feed prepares its steps: a CPU's and a GPU's."""
    if request.param == "on the training thread":
        yield request.param
        return
    cuda = FakeCuda()
    monkeypatch.setattr("pipelines.training.batches.SideStream", lambda device: SideStream(device, cuda))
    with cuda.training(monkeypatch):
        yield request.param


def block(ids, *, base=0, side=2, epoch=0, spent=(0.0, 0.0)):
    ids = np.asarray(ids, dtype=np.int64)
    return {
        "image": np.broadcast_to(ids.astype(np.uint8)[:, None, None, None], (len(ids), side, side, 3)).copy(),
        "label": ids % 3,
        "id": ids,
        "epoch": np.where(ids == FILLER, FILLER, epoch).astype(np.int32),
        "base": np.full(len(ids), base, dtype=np.int64),
        "draw": np.array(ids, dtype=np.int64),
        "read_s": spent[0] * (np.arange(len(ids)) == 0),
        "decode_s": spent[1] * (np.arange(len(ids)) == 0),
        "made_at": np.zeros(len(ids)),
        "retries": np.zeros(len(ids), dtype=np.int64),
        "bad": np.full(len(ids), "", dtype=object),
        "warning": np.full(len(ids), "", dtype=object),
    }


def steps(total, batch, world=1, microbatch=0, repeats=1):
    whole = max(1, total * repeats // batch)
    return Steps(
        repeats=repeats,
        total_samples=total,
        total_steps=whole,
        global_batch_size=batch,
        world_size=world,
        microbatch_size=microbatch,
    )


def ids_of(share):
    return [int(image[0, 0, 0]) for batch in share.microbatches for image in batch.images_BHWC]


def test_shares_cut_across_blocks_and_the_last_takes_the_remainder():
    feed = RankBatches([block([0, 1, 2]), block([3, 4, 5, 6, 7, 8, 9])], steps(10, 4), CPU)
    assert feed.base() == 0
    shares = list(feed.from_step(0))
    assert [ids_of(share) for share in shares] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]
    assert [share.count for share in shares] == [4, 6]
    # the remainder never makes a batch larger than the others: it is cut into even parts
    assert [len(batch) for batch in shares[1].microbatches] == [3, 3]
    assert feed.drain_marks().tolist() == [[0, i] for i in range(10)]
    assert feed.drain_marks().shape == (0, 2)
    assert feed.times.images == 10


def test_only_what_was_handed_out_is_marked():
    feed = RankBatches([block(range(8))], steps(8, 4), CPU)
    next(feed.from_step(0))
    assert feed.drain_marks()[:, 1].tolist() == [0, 1, 2, 3]


def test_filler_is_neither_trained_on_nor_marked():
    feed = RankBatches([block([0, 1, 2, FILLER], base=7)], steps(7, 4, world=2), CPU)
    assert feed.base() == 7
    (share,) = feed.from_step(0)
    assert ids_of(share) == [0, 1, 2]
    assert feed.drain_marks()[:, 1].tolist() == [0, 1, 2]


def test_filler_that_comes_early_makes_no_step_smaller():
    feed = RankBatches([block([0, FILLER, 1]), block([FILLER]), block([2, 3, 4])], steps(9, 4, world=2), CPU)
    shares = list(feed.from_step(0))
    assert [sum(len(batch) for batch in share.microbatches) for share in shares] == [2, 3]
    assert feed.drain_marks()[:, 1].tolist() == [0, 1, 2, 3, 4]


def test_filler_stands_in_where_one_worker_has_all_of_it():
    feed = RankBatches([block([0, FILLER, FILLER, FILLER])], steps(9, 4, world=2), CPU)
    assert [sum(len(batch) for batch in share.microbatches) for share in feed.from_step(0)] == [1, 0]


def test_a_stream_of_nothing_but_filler_gives_an_empty_share():
    feed = RankBatches([block([FILLER])], steps(4, 4), CPU)
    (share,) = feed.from_step(0)
    assert share.microbatches == [] and share.count == 4


def test_blocks_of_no_rows_are_passed_over():
    feed = RankBatches([block([]), block([0, 1], base=3), block([]), block([2, 3])], steps(4, 4), CPU)
    assert feed.base() == 3
    (share,) = feed.from_step(0)
    assert ids_of(share) == [0, 1, 2, 3]


def test_images_of_two_sizes_become_batches_of_one_size_each():
    feed = RankBatches([block([0, 1], side=2), block([2, 3], side=4)], steps(4, 4), CPU)
    (share,) = feed.from_step(0)
    assert [batch.images_BHWC.shape for batch in share.microbatches] == [(2, 2, 2, 3), (2, 4, 4, 3)]


def repeated(ids, repeats, **options):
    """View v of sample i has pixels of 10 i + v."""
    rows = block(ids, **options)
    views = 10 * rows["image"][:, None] + np.arange(repeats, dtype=np.uint8)[:, None, None, None]
    return {**rows, "image": views}


def test_repeated_samples_are_marked_once_and_shown_view_after_view():
    feed = RankBatches([repeated([0, 1, 2], 2), repeated([3, 4], 2)], steps(5, 4, repeats=2), CPU)
    shares = list(feed.from_step(0))
    assert [ids_of(share) for share in shares] == [[0, 10, 1, 11], [20, 30, 40, 21, 31, 41]]
    labels = [[int(label) for batch in share.microbatches for label in batch.labels_B] for share in shares]
    assert labels == [[0, 1, 0, 1], [2, 0, 1, 2, 0, 1]]
    assert [share.count for share in shares] == [4, 6]
    assert [len(batch) for batch in shares[1].microbatches] == [3, 3]
    assert feed.drain_marks().tolist() == [[0, i] for i in range(5)]
    assert feed.times.images == 10


def test_times_of_tasks_add_up_however_blocks_are_cut():
    cut = block(range(5), spent=(0.5, 2.0))
    parts = [{name: column[rows] for name, column in cut.items()} for rows in (slice(0, 3), slice(3, 5))]
    feed = RankBatches([*parts, block([5, 6, 7], spent=(0.25, 1.0))], steps(8, 4), CPU)
    list(feed.from_step(0))
    assert (feed.times.read_s, feed.times.decode_s, feed.times.images) == (0.75, 3.0, 8)


class Arriving:
    """A queue from which each block comes after some seconds, by a clock of its own."""

    def __init__(self, monkeypatch, blocks):
        self.now, self.blocks = 0.0, list(blocks)
        monkeypatch.setattr("pipelines.training.batches.time.perf_counter", lambda: self.now)
        monkeypatch.setattr("pipelines.training.batches.time.time", lambda: self.now)

    def get(self):
        seconds, arrived = self.blocks.pop(0)
        self.now += seconds
        return arrived

    def put(self, _):
        pass


def test_the_wait_is_parted_by_who_was_waited_for_and_none_is_lost(way, monkeypatch):
    """A block that is made late is the tasks' fault, one that comes late after it was made is the delivery's."""
    if way == "one ahead":
        pytest.skip("its clock is read by one thread: tests/pipelines/training/test_side_stream.py")
    feed = RankBatches([], steps(12, 4), CPU)
    arriving = Arriving(
        monkeypatch,
        [
            (10.0, block(range(4), spent=(0.0, 1.0))),  # the first one: nobody's fault
            (2.0, {**block(range(4, 8), spent=(1.0, 2.0)), "made_at": np.full(4, 11.5)}),
            (1.0, {**block(range(8, 12)), "made_at": np.full(4, 11.9)}),
            (0.0, None),
        ],
    )
    monkeypatch.setattr(feed, "_ahead", arriving)
    feed.base()
    assert (feed.times.waited_s, feed.times.decode_s) == (0.0, 1.0)
    assert len(list(feed.from_step(0))) == 3
    assert (feed.times.tasks_s, feed.times.transfer_s) == (1.5, 1.5)
    waits = {stage: seconds for stage, seconds in feed.times.waits().items() if seconds}
    assert waits == pytest.approx({"read": 0.375, "decode": 1.125, "transfer": 1.5})


def test_repeated_samples_over_ranks_and_with_filler():
    feed = RankBatches([repeated([0, 1, FILLER], 3)], steps(5, 12, world=2, repeats=3), CPU)
    (share,) = feed.from_step(0)
    assert ids_of(share) == [0, 10, 1, 11, 2, 12]
    assert share.count == 15
    assert feed.drain_marks()[:, 1].tolist() == [0, 1]


def test_a_batch_that_does_not_divide_by_the_repeats_is_refused():
    with pytest.raises(UserError, match=r"global_batch_size must be a multiple of data\.repeats = 3, got 8"):
        steps(100, 8, world=2, repeats=3)


def test_an_error_of_the_stream_reaches_the_one_who_waits():
    def broken():
        yield block([0, 1])
        raise OSError("gone")

    feed = RankBatches(broken(), steps(8, 4), CPU)
    with pytest.raises(OSError, match="gone"):
        next(feed.from_step(0))


def test_a_stream_that_ends_early_is_a_bug():
    with pytest.raises(RuntimeError, match="ended 2 rows early"):
        next(RankBatches([block([0, 1])], steps(8, 4), CPU).from_step(0))


def test_a_bad_sample_is_consumed_and_nothing_of_it_is_trained_on():
    """Its step keeps its nominal count; where a rank has nothing else, its share is empty."""
    first, second = block(range(4)), block(range(4, 8))
    for row, rows in ((1, first), *((row, second) for row in range(4))):
        rows["bad"][row] = f"note {rows['id'][row]}"
    feed = RankBatches([first, second], steps(8, 4), CPU)
    shares = feed.from_step(0)
    share = next(shares)
    assert [batch.labels_B.tolist() for batch in share.microbatches] == [[0, 2, 0]]
    assert [batch.images_BHWC[:, 0, 0, 0].tolist() for batch in share.microbatches] == [[0, 2, 3]]
    assert (share.count, feed.drain_marks()[:, 1].tolist()) == (4, [0, 1, 2, 3])
    assert feed.drain_bad() == [(1, 0, "note 1")]
    share = next(shares)
    assert (share.microbatches, share.count) == ([], 4)
    assert feed.drain_marks()[:, 1].tolist() == [4, 5, 6, 7]
    assert [sample for sample, _, _ in feed.drain_bad()] == [4, 5, 6, 7]


def test_what_data_tasks_warn_of_is_told_once():
    warned = block(range(4))
    warned["warning"][0] = "the disk is full"
    feed = RankBatches([warned, warned, warned], steps(12, 4), CPU)
    told = [feed.drain_warnings() for _ in feed.from_step(0)]
    assert told == [["the disk is full"], [], []]


@pytest.mark.parametrize(("batch", "world", "chunk"), [(64, 3, 1), (64, 5, 2), (64, 2, 8), (12, 7, 1), (8, 3, 8)])
def test_ranks_that_are_dealt_chunks_in_turn_take_what_they_are_dealt(batch: int, world: int, chunk: int) -> None:
    cut = dataclasses.replace(steps(10 * batch, batch, world), chunk_rows=chunk)
    for nth in range(10):
        dealt = Counter(place // chunk % world for place in range(nth * batch, (nth + 1) * batch))
        assert [cut.rows(rank, nth) for rank in range(world)] == [dealt[rank] for rank in range(world)]
    assert cut.images_per_rank == max(cut.rows(rank, 0) for rank in range(world))
