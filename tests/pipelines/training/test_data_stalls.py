"""What is recorded and told of the data: shares that add up, and one line that names the stage and the remedy."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from infra.tracking.metric_point import MetricPoint
from pipelines.data.tasks.timing import STAGES, DataTimes
from pipelines.training.data_stalls import data_limit, data_metrics, retries, waiting
from pipelines.training.messages import MetricMessage
from pipelines.training.progress import ProgressLine

DECODING = DataTimes(images=3000, tasks_s=1.5, transfer_s=0.2, collate_s=0.3, read_s=1.0, decode_s=5.0)


def recorded(times, seconds=10.0, steps=2, step_images=1500):
    metrics = {"train/loss": 0.5, **data_metrics(times, seconds)}
    return [
        MetricPoint(step=step * times.images // step_images, time_ms=0, metrics=metrics) for step in range(1, steps + 1)
    ]


def test_the_stages_shares_add_up_to_the_wait():
    metrics = data_metrics(DECODING, 10.0)
    assert metrics["train/images_per_second"] == 300.0
    assert metrics["train/data_wait_share"] == metrics["data/wait_share"] == pytest.approx(0.2)
    shares = {stage: metrics[f"data/{stage}_share"] for stage in STAGES}
    assert shares == pytest.approx({"read": 0.025, "decode": 0.125, "transfer": 0.02, "collate": 0.03, "device": 0.0})
    assert {stage: metrics[f"data/{stage}_share_max"] for stage in STAGES} == shares
    assert metrics["data/read_seconds_per_1k"] == pytest.approx(1 / 3)
    assert metrics["data/decode_seconds_per_1k"] == pytest.approx(5 / 3)


def test_over_ranks_the_mean_and_the_largest(monkeypatch):
    """As if another rank had waited for nothing but its deliveries."""
    other = torch.tensor([1.0, 3000, 7.0, 1.0, 5.0, 0, 0, 0.4, 0, 0], dtype=torch.float64)
    monkeypatch.setattr("resnet_core.distributed.sum_over_ranks_", lambda own: own + other)
    largest = torch.tensor([0, 0, 0.4, 0, 0, 0.4], dtype=torch.float64)
    monkeypatch.setattr("resnet_core.distributed.max_over_ranks_", lambda own: own.maximum(largest))
    metrics = data_metrics(DECODING, 10.0)
    assert metrics["train/images_per_second"] == 600.0
    assert (metrics["train/data_wait_share"], metrics["data/wait_share"]) == pytest.approx((0.4, 0.3))
    assert (metrics["data/transfer_share"], metrics["data/transfer_share_max"]) == pytest.approx((0.21, 0.4))
    assert (metrics["data/decode_share"], metrics["data/decode_share_max"]) == pytest.approx((0.0625, 0.125))
    assert metrics["data/retries"] == 7.0
    assert retries([MetricPoint(step=step, time_ms=0, metrics=metrics) for step in (1, 2)]) == 14


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (DECODING, "20% waiting for data (decode)"),
        (DataTimes(images=1, transfer_s=0.3), "3% waiting for data (transfer)"),
        (DataTimes(images=1, transfer_s=0.01), "0% waiting for data"),
    ],
)
def test_the_progress_line_names_the_stage(times, expected):
    line = ProgressLine(
        console=Console(file=io.StringIO()), total_steps=10, steps_per_epoch=2.0, global_batch_size=1500
    )
    (record,) = recorded(times, steps=1, step_images=max(1, times.images // 2))
    line.show(MetricMessage(record=record))
    assert expected in line.line().split("  ")
    assert waiting({"train/loss": 0.5}) == ""


def test_the_end_of_a_run_says_what_limited_it_and_what_to_change():
    """Two records of 10 s, 3,000 images each: 300 images/s, and 20 % of the time waiting, so that 375 are wanted."""
    text = data_limit(recorded(DECODING), 1500)
    assert text == (
        "20% of the training time was spent waiting for data, mostly for decode: the workers got 300 images/s "
        "with data tasks busy on 0.6 CPUs, and could train on 375; add 1 CPU for data tasks, or store smaller images "
        "or raw pixels (docs/stored-forms.md)"
    )


@pytest.mark.parametrize(
    ("times", "remedy"),
    [
        (DataTimes(images=3000, tasks_s=5.0, read_s=5.0, decode_s=1.0), "data.cache_dir"),
        (DataTimes(images=3000, transfer_s=5.0, read_s=5.0), "object store"),
        (DataTimes(images=3000, collate_s=5.0, read_s=5.0), "run.cpus_per_worker"),
        (DataTimes(images=3000, device_s=5.0, read_s=5.0), 'data.decode_on = "host"'),
    ],
)
def test_each_stage_has_its_remedy(times, remedy):
    assert remedy in data_limit(recorded(times), 1500)


def test_nothing_is_said_where_nobody_waits_or_nothing_is_known():
    assert data_limit(recorded(DataTimes(images=3000, transfer_s=0.1, decode_s=9.0)), 1500) == ""
    assert data_limit([], 1500) == ""
    old = {"train/images_per_second": 10.0, "train/data_wait_share": 0.5}  # of a run that an earlier version began
    assert data_limit([MetricPoint(step=1, time_ms=0, metrics=old)], 1500) == ""
