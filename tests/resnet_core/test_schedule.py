from __future__ import annotations

from typing import Any

import pytest

from resnet_core.config import OptimConfig, ScheduleConfig
from resnet_core.schedule import LrSchedule, epoch_end_step, lr_factor, to_steps, total_samples, total_steps

IMAGENET = 1_281_167


def factor(step: int, **settings: Any) -> float:
    return lr_factor(step, ScheduleConfig(**settings), warmup_steps=10, milestone_steps=(40, 70), total_steps=100)


@pytest.mark.parametrize("shape", ["cosine", "linear", "step", "constant"])
def test_warmup_climbs_from_its_start_to_the_peak(shape: Any) -> None:
    settings = {"shape": shape, "milestones": (40.0, 70.0) if shape == "step" else (), "warmup_start_factor": 0.2}
    assert [factor(step, **settings) for step in (0, 5, 10)] == pytest.approx([0.2, 0.6, 1.0])


def test_cosine_passes_half_way_and_reaches_its_end_one_past_the_last_step() -> None:
    assert factor(55) == pytest.approx(0.5)
    assert factor(99) == pytest.approx(0.000304586, rel=1e-4)
    assert factor(100, end_factor=0.1) == pytest.approx(0.1)


def test_linear_falls_evenly() -> None:
    assert [factor(step, shape="linear", end_factor=0.1) for step in (10, 55, 100)] == pytest.approx([1.0, 0.55, 0.1])


def test_steps_fall_at_their_milestones() -> None:
    values = [factor(step, shape="step", milestones=(40.0, 70.0)) for step in (39, 40, 69, 70, 99)]
    assert values == pytest.approx([1.0, 0.1, 0.1, 0.01, 0.01])


def test_constant_stays() -> None:
    assert {factor(step, shape="constant") for step in range(10, 100)} == {1.0}


def test_the_paper_s_imagenet_run_in_steps() -> None:
    config = ScheduleConfig(length=90.0, warmup=5.0, shape="step", milestones=(30.0, 60.0))
    schedule = LrSchedule.build(config, OptimConfig(), IMAGENET)
    assert schedule.total_steps == 90 * IMAGENET // 256 == 450_410
    assert schedule.warmup_steps == 25_022
    assert schedule.milestone_steps == (150_136, 300_273)
    assert [schedule(step) for step in (0, 25_022, 150_135, 150_136, 450_409)] == pytest.approx(
        [0.0, 0.1, 0.1, 0.01, 0.001]
    )


@pytest.mark.parametrize(
    ("samples", "batch", "length", "steps"),
    [(4000, 128, 10.0, 312), (4000, 128, 0.5, 15), (100, 256, 1.0, 1), (256, 256, 1.0, 1), (511, 256, 1.0, 1)],
)
def test_a_run_has_the_whole_batches_within_its_samples_and_at_least_one(
    samples: int, batch: int, length: float, steps: int
) -> None:
    config = ScheduleConfig(length=length)
    assert total_steps(config, samples, batch) == steps
    assert total_samples(config, samples, batch) == round(length * samples)


def test_a_run_given_in_steps() -> None:
    config = ScheduleConfig(unit="steps", length=64_000.0)
    assert total_steps(config, 50_000, 128) == 64_000
    assert total_samples(config, 50_000, 128) == 8_192_000
    assert to_steps(32_000.0, "steps", 50_000, 128) == 32_000


def test_epochs_end_after_the_steps_that_lie_within_them_and_the_last_with_the_run() -> None:
    total = total_steps(ScheduleConfig(length=3.0), 1000, 300)
    assert [epoch_end_step(epoch, 1000, 300, total) for epoch in (1, 2, 3)] == [3, 6, 10]
    assert epoch_end_step(2, 1000, 300, total_steps(ScheduleConfig(length=1.5), 1000, 300)) == 5
    assert [epoch_end_step(epoch, 10, 256, 1) for epoch in (1, 2, 3)] == [1, 1, 1]


def test_a_run_of_one_step_is_trained_at_the_peak() -> None:
    schedule = LrSchedule.build(ScheduleConfig(length=1.0, warmup=0.9), OptimConfig(), samples_per_epoch=300)
    assert (schedule.total_steps, schedule(0)) == (1, 0.1)
