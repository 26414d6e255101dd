"""The order of a feed's work beside the training, judged by a device on which nothing is in time by chance."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torchvision

from pipelines.data.tasks.timing import DataTimes
from pipelines.training.batches import RankBatches, Rows, one_ahead
from pipelines.training.device_decode import DeviceImages
from pipelines.training.side_stream import SideStream
from tests.pipelines.data.conftest import encoded, picture
from tests.pipelines.fake_cuda import FakeCuda, OutOfOrder
from tests.pipelines.training.test_batches import CPU, block, ids_of, steps

SIDE = 8


def windows(count: int, side: int) -> np.ndarray:
    """Each the whole image."""
    return np.tile(np.array([0.0, side, 0.0, side] * 2), (count, 1))


def raw(ids) -> Rows:
    rows = block(ids, side=SIDE)
    return {**rows, "window": windows(len(ids), SIDE), "size": np.full(len(ids), 4, dtype=np.int32)}


def jpegs(ids) -> Rows:
    rows, count = raw(ids), len(ids)
    images = np.empty(count, dtype=object)
    images[:] = [encoded(picture(SIDE, SIDE, seed=int(each))) for each in ids]
    sides = {name: np.full(count, SIDE, dtype=np.int32) for name in ("height", "width")}
    return {**rows, **sides, "image": images, "coded": np.ones(count, dtype=bool)}


def resident(ids) -> Rows:
    rows = raw(ids)
    del rows["image"]
    return {**rows, "place": np.asarray(ids)}


@pytest.fixture(params=[block, raw, jpegs, resident], ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def guarded(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A fake of CUDA that refuses a decoding where the stream is not idle."""
    cuda, decode = FakeCuda(), torchvision.io.decode_jpeg

    def checked(*args, **kwargs):
        cuda.check_idle()
        return decode(*args, **kwargs)

    monkeypatch.setattr(torchvision.io, "decode_jpeg", checked)
    return cuda


def trained(kind, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Labels of each step, from a training that reads every image on its own stream, and waits for nothing."""
    cuda = guarded(monkeypatch)
    seen = []
    with cuda.training(monkeypatch):
        whole = torch.arange(16, dtype=torch.uint8).view(16, 1, 1, 1).expand(16, SIDE, SIDE, 3).contiguous()
        maker = DeviceImages(device=CPU, cached_NHWC=whole)
        blocks = [kind([0, 1, 2]), kind([3, 4]), kind(range(5, 12)), kind(range(12, 16))]
        feed = RankBatches(blocks, steps(16, 4), CPU, maker, stream=SideStream(CPU, cuda))
        for share in feed.from_step(feed.base()):
            sums = [batch.images_BHWC.float().sum() for batch in share.microbatches]
            assert all(torch.isfinite(each) for each in sums)
            seen.append([int(label) for batch in share.microbatches for label in batch.labels_B])
            del share, sums
    return seen


def test_the_steps_stream_reads_what_is_made_and_the_feeds_memory_is_left_alone_until_it_has(kind, monkeypatch):
    assert trained(kind, monkeypatch) == [[place % 3 for place in range(first, first + 4)] for first in (0, 4, 8, 12)]


def without_event(self, event, tensors):
    for tensor in tensors:
        tensor.record_stream(self._api.current_stream(self._device))


def without_record_stream(self, event, tensors):
    self._api.current_stream(self._device).wait_event(event)


@pytest.mark.parametrize(
    ("kind", "name", "broken", "found"),
    [
        (block, "receive", without_event, "reads what is not written yet"),
        (raw, "receive", without_event, "reads what is not written yet"),
        (block, "receive", without_record_stream, "goes back to its stream while another one reads it"),
        (jpegs, "settle", lambda self: None, "nvJPEG writes into memory that the stream may still read"),
        (block, "entered", lambda self: self._api.stream(self._stream), "works on device 0"),
    ],
)
def test_each_rule_is_needed(kind, name, broken, found, monkeypatch):
    monkeypatch.setattr(SideStream, name, broken)
    with pytest.raises(OutOfOrder, match=found):
        trained(kind, monkeypatch)


def test_a_resident_split_is_read_behind_its_copy_to_the_device(monkeypatch):
    cuda = FakeCuda()
    with cuda.training(monkeypatch):
        written = torch.ones(4)
        with SideStream(CPU, cuda).entered():
            written.sum()
        stream = SideStream(CPU, cuda)
        late = torch.ones(4)
        with stream.entered(), pytest.raises(OutOfOrder, match="not written yet"):
            late.sum()


def test_one_step_is_prepared_while_the_one_before_it_is_in_use():
    begun: list[int] = []
    reached = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in range(6):
            begun.append(number)
            reached.release()
            yield number

    ahead = one_ahead(items(), nullcontext)
    for number in range(5):
        assert next(ahead) == number
        for _ in range(2 if number == 0 else 1):
            assert reached.acquire(timeout=60)  # the next one is begun without being asked for,
        assert begun == list(range(number + 2))  # and the one behind it is not
    ahead.close()


def test_an_error_comes_behind_what_was_made_before_it():
    def items() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    ahead = one_ahead(items(), nullcontext)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="gone"):
        next(ahead)


def test_what_is_prepared_and_not_handed_out_is_not_accounted_for(monkeypatch):
    """A run that is stopped here trains on the second step's samples when it resumes."""
    first, second = block(range(4)), block(range(4, 8))
    second["bad"][0], second["warning"][1] = "note", "the disk is full"
    asked = threading.Event()

    def blocks():
        yield first
        yield second
        yield block(range(8, 12))
        asked.set()

    cuda = FakeCuda()
    with cuda.training(monkeypatch):
        feed = RankBatches(blocks(), steps(12, 4), CPU, stream=SideStream(CPU, cuda))
        shares = feed.from_step(0)
        assert ids_of(next(shares)) == [0, 1, 2, 3]
        assert asked.wait(timeout=60)
        assert (feed.drain_marks()[:, 1].tolist(), feed.drain_bad(), feed.drain_warnings()) == ([0, 1, 2, 3], [], [])
        assert feed.times.images == 4
        assert ids_of(next(shares)) == [5, 6, 7]
        assert feed.drain_marks()[:, 1].tolist() == [4, 5, 6, 7]
        assert (feed.drain_bad(), feed.drain_warnings()) == ([(4, 0, "note")], ["the disk is full"])
        shares.close()
        assert feed.drain_marks().shape == (0, 2)


def test_only_the_time_that_training_is_blocked_counts_as_waiting(monkeypatch):
    """A step that takes the feed 3 s costs the training nothing if it is there when it is asked for."""
    cuda, clock = FakeCuda(), Clock()
    may_end, ended = threading.Semaphore(1), threading.Semaphore(0)

    class Slow(SideStream):
        """A class of its own: a thread that an earlier test closed may still be making its last rank batch."""

        def finished(self):
            assert may_end.acquire(timeout=60)
            clock.now += 3.0
            ended.release()
            return super().finished()

    monkeypatch.setattr("pipelines.training.batches.time.perf_counter", lambda: clock.now)
    with cuda.training(monkeypatch):
        feed = RankBatches([block(range(8))], steps(8, 4), CPU, stream=Slow(CPU, cuda))
        feed.base()
        shares = feed.from_step(0)
        next(shares)
        assert feed.times.collate_s == pytest.approx(3.0)  # the first one, which nothing was ahead of
        may_end.release()
        assert ended.acquire(timeout=60) and ended.acquire(timeout=60)
        next(shares)
        assert feed.times.collate_s == pytest.approx(3.0)


class Clock:
    """Seconds that pass only where the test says so."""

    def __init__(self) -> None:
        self.now = 0.0


def test_the_wait_is_split_as_the_feed_spent_its_time():
    busy = DataTimes(images=4, tasks_s=1.0, transfer_s=2.0, collate_s=3.0, device_s=4.0, read_s=7.0, retries=1)
    held_up = DataTimes(images=4, tasks_s=0.5, transfer_s=1.0, collate_s=1.5, device_s=2.0, read_s=7.0, retries=1)
    assert busy.waiting(5.0) == held_up
    assert busy.waiting(0.0).waits() == dict.fromkeys(held_up.waits(), 0.0)


def test_crops_outside_a_feed_wait_for_the_stream_that_they_are_made_in(monkeypatch):
    """As the tests and benchmarks of a GPU make them, on the thread's own stream."""
    cuda = guarded(monkeypatch)
    with cuda.training(monkeypatch):
        for _ in range(2):
            crops = DeviceImages(device=CPU).crops([jpegs(range(3))], SideStream(CPU, cuda))
            crops.float().sum()


def test_a_gpu_copies_from_page_locked_memory_by_itself(monkeypatch):
    asked = []
    empty, empty_like = torch.empty, torch.empty_like

    class Device(torch.Tensor):
        def copy_(self, other, non_blocking=False):
            asked.append(("non_blocking", non_blocking))
            return self

    def noted(*shape, pin_memory=False, **settings):
        asked.append(("pinned", pin_memory))
        return empty(*shape, **settings)

    monkeypatch.setattr(torch, "empty", noted)
    monkeypatch.setattr(torch, "empty_like", lambda buffer, device: empty_like(buffer).as_subclass(Device))
    stream = SideStream(torch.device("cuda"), FakeCuda())
    sent = stream.send([np.zeros((2, 3), np.uint8), np.ones((1, 3), np.uint8)])
    assert sent.shape == (3, 3)
    assert asked == [("pinned", True), ("non_blocking", True)]
