"""On a Ray of four CPUs and no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import ray
from ray.util import placement_group, remove_placement_group

from infra.launch_failures import LaunchFailure
from pipelines.training import progress as room
from pipelines.training.placement import Placement
from pipelines.training.progress import StallCheck, missing_resources

pytestmark = pytest.mark.usefixtures("ray_local")
NODES = "waiting for nodes: 8 worker(s) need 8 CPUs and the cluster has 4"


def workers(least: int, most: int | None = None, *, cpus: int = 1, gpu: bool = False) -> Placement:
    return Placement(workers=(least, least if most is None else most), cpus=cpus, gpu=gpu)


def test_a_run_that_fits_waits_for_no_room() -> None:
    assert missing_resources(workers(4)) == ""
    assert missing_resources(workers(0)) == ""
    assert missing_resources(workers(1, 8)) == ""


def test_nodes_that_are_missing_are_counted_by_what_is_missing() -> None:
    assert missing_resources(workers(8)) == NODES
    assert missing_resources(workers(3, 8, cpus=2)) == (
        "waiting for nodes: 3 worker(s) need 6 CPUs and the cluster has 4"
    )
    assert missing_resources(workers(2, gpu=True)) == (
        "waiting for nodes: 2 worker(s) need 2 GPUs and the cluster has 0"
    )


def test_the_cloud_s_refusals_are_in_the_line_and_a_quota_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    capacity = LaunchFailure(node_type="gpu-worker", code="InsufficientInstanceCapacity", text="none in us-east-1a")
    quota = LaunchFailure(node_type="gpu-worker-on-demand", code="VcpuLimitExceeded", text="limit of 0")
    monkeypatch.setattr(room, "recent_launch_failures", lambda: [capacity])
    assert missing_resources(workers(8)) == f"{NODES}; {capacity}"
    monkeypatch.setattr(room, "recent_launch_failures", lambda: [capacity, quota])
    advice = "request a larger quota for the account: docs/aws-first-hour.md has the commands"
    assert missing_resources(workers(8)) == f"{NODES}; {capacity}; {quota}; {advice}"


def test_room_that_others_hold_is_told_while_the_run_s_group_waits() -> None:
    held = placement_group([{"CPU": 3}])
    assert ray.get(held.ready(), timeout=60)
    waits = placement_group([{"CPU": 1}, {"CPU": 1}])
    try:
        assert not waits.wait(1)
        assert missing_resources(workers(2)) == (
            "waiting for resources: 2 worker(s) of 1 CPU need more than is free: see `ray status`"
        )
        remove_placement_group(held)
        assert waits.wait(60)
        assert missing_resources(workers(2)) == ""
    finally:
        for group in (held, waits):
            remove_placement_group(group)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Set the clock, in seconds."""
    now = [0.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    yield lambda seconds: now.__setitem__(0, seconds)


def test_it_is_told_after_half_a_minute_of_silence_and_then_every_five(at: Callable[[float], None]) -> None:
    standstill = StallCheck(workers(8))
    told = {}
    for second in range(700):
        at(second)
        if second == 20:
            standstill.heard()
        if reason := standstill.reason():
            told[second] = reason
    assert told == dict.fromkeys((50, 350, 650), NODES)


def test_silence_alone_is_no_reason(at: Callable[[float], None]) -> None:
    standstill = StallCheck(workers(2))
    at(1000)
    assert standstill.reason() == ""
