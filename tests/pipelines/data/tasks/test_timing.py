"""The clock of a data task, and how a worker's wait is parted."""

from __future__ import annotations

import pytest

from infra.retry import count_retry, take_retries
from pipelines.data.tasks.timing import STAGES, DataTimes, StageClock


@pytest.fixture
def now(monkeypatch):
    """A clock that the test sets, in seconds."""
    times = {"at": 0.0}
    monkeypatch.setattr("pipelines.data.tasks.timing.time.perf_counter", lambda: times["at"])
    monkeypatch.setattr("pipelines.data.tasks.timing.time.time", lambda: 1000 + times["at"])
    return times


def test_a_task_s_time_is_reading_or_decoding_and_none_is_lost(now):
    clock = StageClock()
    now["at"] = 1.0
    with clock.reading():
        now["at"] = 4.0
    now["at"] = 6.0
    take_retries()
    for _ in range(2):
        count_retry()
    first = clock.columns(3)
    assert {name: column.tolist() for name, column in first.items()} == {
        "read_s": [3.0, 0.0, 0.0],
        "decode_s": [3.0, 0.0, 0.0],
        "made_at": [1006.0, 1006.0, 1006.0],
        "retries": [2, 0, 0],
    }
    now["at"] = 50.0  # Ray stores the block, and waits until another is wanted
    clock.restart()
    now["at"] = 51.5
    second = clock.columns(1)
    assert (second["read_s"].tolist(), second["decode_s"].tolist()) == ([0.0], [1.5])
    assert second["retries"].tolist() == [0]
    assert DataTimes.of_block(first, 0.0, 0.0).retries == 2


def test_an_empty_block_has_no_row_to_carry_anything(now):
    assert [column.shape for column in StageClock().columns(0).values()] == [(0,)] * 4


@pytest.mark.parametrize(
    ("asked_at", "tasks_s", "transfer_s"),
    [
        (1000.0, 2.0, 0.0),  # made when it came
        (1002.0, 0.0, 2.0),  # made long before it was asked for
        (1000.5, 0.5, 1.5),
        (900.0, 2.0, 0.0),  # the node's clock is ahead of ours
    ],
)
def test_the_wait_for_a_block_is_parted_at_the_moment_it_was_made(now, asked_at, tasks_s, transfer_s):
    made_at = 1002.0 if asked_at == 1000.0 else 1001.0
    block = StageClock().columns(2)
    block["made_at"][:] = made_at
    times = DataTimes.of_block(block, asked_at, 2.0)
    assert (times.tasks_s, times.transfer_s) == (tasks_s, transfer_s)


def test_waiting_for_tasks_is_waiting_for_what_they_do():
    times = DataTimes(tasks_s=4.0, transfer_s=0.5, collate_s=0.25, device_s=1.0, read_s=3.0, decode_s=9.0)
    assert times.waits() == {"read": 1.0, "decode": 3.0, "transfer": 0.5, "collate": 0.25, "device": 1.0}
    assert tuple(times.waits()) == STAGES
    assert times.waited_s == sum(times.waits().values()) == 5.75
    assert (times + times).waited_s == 11.5
    assert DataTimes(tasks_s=1.0).waits()["decode"] == 1.0  # nothing is known of the tasks
