"""What EC2 answered, from the log that Ray's monitor writes; with Ray's own autoscaler: test_autoscaling.py."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from infra import launch_failures as launches
from infra.launch_failures import recent_launch_failures

QUOTA = (
    "You have requested more vCPU capacity than your current vCPU limit of 0 allows for the instance bucket that the "
    "specified instance type belongs to. Please visit http://aws.amazon.com/contact-us/ec2-request to request an "
    "adjustment to this limit."
)
SOLD_OUT = "There is no Spot capacity available that matches your request."


def line(reason: str, kind: str = "gpu-worker", ago_s: float = 60) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - ago_s))
    return f"{at},123\tINFO node_provider.py:467 -- Failed to launch 1 nodes of type {kind}: {reason}\n"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(launches, "_logs_of_the_autoscaler", lambda: tmp_path)
    return tmp_path / "monitor.log"


def test_the_last_answer_for_each_type_is_told_in_ec2s_own_words(log: Path) -> None:
    log.write_text(
        line(f"Node Launch Exception (InsufficientInstanceCapacity): {SOLD_OUT}", ago_s=90)
        + "2026-11-30 05:00:00,000\tINFO autoscaler.py:1 -- something else\n"
        + line(f"Node Launch Exception (MaxSpotInstanceCountExceeded): {SOLD_OUT}")
        + line(f"Node Launch Exception (VcpuLimitExceeded): {QUOTA}", kind="gpu-worker-on-demand")
    )
    spot, on_demand = recent_launch_failures()
    assert str(spot) == f"gpu-worker was refused: MaxSpotInstanceCountExceeded: {SOLD_OUT}"
    assert str(on_demand) == f"gpu-worker-on-demand was refused: VcpuLimitExceeded: {QUOTA}"
    assert spot.is_quota and on_demand.is_quota


def test_a_lack_of_machines_is_no_quota(log: Path) -> None:
    log.write_text(line(f"Node Launch Exception (InsufficientInstanceCapacity): {SOLD_OUT}"))
    (refusal,) = recent_launch_failures()
    assert not refusal.is_quota


def test_an_answer_of_another_form_is_told_as_it_is(log: Path) -> None:
    log.write_text(line("Unable to locate credentials"))
    assert list(map(str, recent_launch_failures())) == ["gpu-worker was refused: Unable to locate credentials"]


def test_old_answers_are_over(log: Path) -> None:
    log.write_text(line(f"Node Launch Exception (VcpuLimitExceeded): {QUOTA}", ago_s=3600))
    assert recent_launch_failures() == []


def test_only_the_end_of_a_long_log_is_read(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "_TAIL_BYTES", 400)
    old = line(f"Node Launch Exception (VcpuLimitExceeded): {QUOTA}", kind="old")
    log.write_text(old + "x" * 1000 + "\n" + line(f"Node Launch Exception (UnfulfillableCapacity): {SOLD_OUT}"))
    assert [refusal.node_type for refusal in recent_launch_failures()] == ["gpu-worker"]


def test_without_a_log_or_an_autoscaler_nothing_is_known(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recent_launch_failures() == []
    monkeypatch.setattr(launches, "_logs_of_the_autoscaler", lambda: None)
    assert recent_launch_failures() == []
