from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from resnet_core.config import OptimConfig, ScheduleConfig
from resnet_core.plateau import Plateau
from resnet_core.schedule import LrSchedule, epoch_end_step, ramp, to_steps, total_samples, total_steps

IMAGENET = 1_281_167
WARMUP, TOTAL = 10, 100


def curve(reaction: Plateau | None = None, **settings: Any) -> list[float]:
    """The factor at every step of a run of 100, and one past it; a warm-up of 10 unless `settings` say otherwise."""
    defaults: dict[str, Any] = {"unit": "steps", "length": 100.0, "warmup": 10.0}
    config = ScheduleConfig(**(defaults | settings))
    schedule = LrSchedule.build(config, OptimConfig(lr_per_256=1.0), samples_per_epoch=IMAGENET)
    return [schedule.factor(step, reaction or Plateau()) for step in range(TOTAL + 1)]


def progress(step: int) -> float:
    return (step - WARMUP) / (TOTAL - WARMUP)


FALLING = {
    "cosine": lambda step: (1 + math.cos(math.pi * progress(step))) / 2,
    "linear": lambda step: 1 - progress(step),
    "poly": lambda step: (1 - progress(step)) ** 2.5,
    "one_cycle": lambda step: (1 + math.cos(math.pi * progress(step))) / 2,
}


@pytest.mark.parametrize("shape", FALLING)
@pytest.mark.parametrize("end", [0.0, 0.1])
def test_falling_shapes_follow_their_formula_and_end_one_past_the_last_step(shape: Any, end: float) -> None:
    values = curve(shape=shape, end_factor=end, power=2.5 if shape == "poly" else 1.0)
    expected = [end + (1 - end) * FALLING[shape](step) for step in range(WARMUP, TOTAL + 1)]
    assert values[WARMUP:] == pytest.approx(expected, abs=1e-12)
    assert (values[WARMUP], values[TOTAL]) == (1.0, pytest.approx(end, abs=1e-15))


@pytest.mark.parametrize("shape", ["cosine", "linear", "poly", "step", "constant", "plateau"])
def test_warmup_climbs_in_three_ways(shape: Any) -> None:
    settings: dict[str, Any] = {"shape": shape, "milestones": (40.0, 70.0) if shape == "step" else ()}

    def climb(form: str) -> list[float]:
        return curve(**settings, warmup_start_factor=0.2, warmup_shape=form)[: WARMUP + 1]

    assert climb("linear") == pytest.approx([0.2 + 0.8 * step / 10 for step in range(11)])
    assert climb("constant") == [0.2] * 10 + [1.0]
    assert climb("exponential") == pytest.approx([0.2 * 5 ** (step / 10) for step in range(11)])


def test_steps_fall_at_their_milestones() -> None:
    values = curve(shape="step", milestones=(40.0, 70.0))
    expected = [step / 10 for step in range(10)] + [1.0] * 30 + [0.1] * 30 + [0.01] * 31
    assert values == pytest.approx(expected)


def test_constant_stays() -> None:
    assert set(curve(shape="constant")[10:]) == {1.0}


def test_piecewise_is_straight_between_its_points_and_level_outside() -> None:
    values = curve(shape="piecewise", warmup=0.0, points=(20.0, 30.0, 80.0), factors=(0.1, 1.0, 0.0))
    expected = [0.1] * 20 + [0.1 + 0.9 * step / 10 for step in range(10)] + [1 - step / 50 for step in range(50)]
    assert values == pytest.approx(expected + [0.0] * 21)


def test_ffcvs_form_over_sixteen_epochs() -> None:
    """1e-4 of the peak (1.7) at 0, the peak at epoch 2, 0 at the end, straight in between at every step."""
    config = ScheduleConfig(length=16.0, shape="piecewise", points=(0.0, 2.0, 16.0), factors=(1e-4, 1.0, 0.0))
    schedule = LrSchedule.build(config, OptimConfig(global_batch_size=1024, lr_per_256=0.425), IMAGENET)
    assert schedule.point_steps == (0, 2502, 20018)
    assert [schedule(step) for step in (0, 1251, 2502, 11260, 20018)] == pytest.approx(
        [1.7e-4, 1.7 * (1e-4 + 0.9999 / 2), 1.7, 0.85, 0.0]
    )


def test_one_cycle_is_torchs_which_counts_its_last_step_as_the_end() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=TOTAL + 1, pct_start=11 / 101, div_factor=25, final_div_factor=4e3
    )
    expected = []
    for _ in range(TOTAL + 1):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        if len(expected) <= TOTAL:
            theirs.step()
    values = curve(shape="one_cycle", warmup_start_factor=1 / 25, end_factor=1e-5)
    assert values == pytest.approx(expected, abs=1e-12)


def test_mlperfs_polynomial() -> None:
    """LARS at a batch of 3,200: peak 11, 2 epochs of warm-up, squared decay to nothing at 35 epochs."""
    config = ScheduleConfig(length=35.0, warmup=2.0, shape="poly", power=2.0)
    schedule = LrSchedule.build(config, OptimConfig(global_batch_size=3200, lr_per_256=0.88), IMAGENET)
    assert (schedule.warmup_steps, schedule.total_steps) == (800, 14012)
    assert [schedule(step) for step in (0, 400, 800, 7406)] == pytest.approx([0.0, 5.5, 11.0, 2.75])


def test_stochastic_depth_climbs_over_its_ramp() -> None:
    assert [ramp(step, 8) for step in (0, 2, 8, 9)] == [0.0, 0.25, 1.0, 1.0]
    assert ramp(0, 0) == 1.0


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
