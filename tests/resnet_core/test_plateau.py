"""Schedules that react to what was recorded: the plateau against torch's, and the paper's warm-up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from resnet_core.config import OptimConfig, ScheduleConfig
from resnet_core.plateau import EarlyStopping, Point
from resnet_core.schedule import LrSchedule

ACCURACIES = [0.1, 0.3, 0.5, 0.49, 0.5005, 0.45, 0.6, 0.6, 0.6, 0.6, 0.61, 0.605, 0.6, 0.602, 0.609, 0.7, 0.7, 0.7]


def schedule_of(**settings: Any) -> LrSchedule:
    defaults: dict[str, Any] = {"unit": "steps", "length": 200.0}
    config = ScheduleConfig(**(defaults | settings))
    return LrSchedule.build(config, OptimConfig(lr_per_256=0.1), samples_per_epoch=1000)


def evaluations(accuracies: list[float], every: int = 10) -> list[Point]:
    return [(every * place, {"test/accuracy": accuracy}) for place, accuracy in enumerate(accuracies, start=1)]


@pytest.mark.parametrize("patience", [0, 1, 2])
@pytest.mark.parametrize("threshold", [0.0, 0.002])
def test_plateau_is_torchs_reduce_on_plateau(patience: int, threshold: float) -> None:
    schedule = schedule_of(shape="plateau", gamma=0.5, patience=patience, threshold=threshold, end_factor=0.02)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=threshold, threshold_mode="abs", min_lr=0.002, eps=0
    )
    points = evaluations(ACCURACIES)
    for seen, accuracy in enumerate(ACCURACIES, start=1):
        theirs.step(1 - accuracy)
        rate = schedule(10 * seen, schedule.react(points[:seen]))
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), seen


def test_plateau_divides_by_ten_by_hand() -> None:
    schedule = schedule_of(shape="plateau", patience=1, threshold=0.01)
    points = evaluations([0.5, 0.6, 0.605, 0.61, 0.7, 0.7, 0.7])
    rates = [schedule(0, schedule.react(points[:seen])) for seen in range(8)]
    # 0.605 and 0.61 are no progress over 0.6: the second of them is one more than is borne
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001])


def test_evaluations_within_the_warm_up_say_nothing_of_a_plateau() -> None:
    schedule = schedule_of(shape="plateau", patience=0, warmup=30.0)
    points = evaluations([0.9, 0.1, 0.5, 0.4])
    assert [schedule.react(points[:seen]).falls for seen in range(5)] == [0, 0, 0, 0, 1]


def test_the_papers_warm_up_ends_when_the_training_error_is_below_eighty_percent() -> None:
    """ResNet-110, Section 4.2: 0.01 until the training error is below 80 %, then 0.1, with its milestones unmoved."""
    schedule = schedule_of(
        shape="step", milestones=(60.0, 90.0), warmup_start_factor=0.1, warmup_until_error=0.8, length=100.0
    )
    points: list[Point] = [(step, {"train/accuracy": a}) for step, a in ((10, 0.1), (20, 0.2), (30, 0.21), (40, 0.1))]
    rates = [schedule(step, schedule.react(point for point in points if point[0] <= step)) for step in range(100)]
    assert rates == pytest.approx([0.01] * 30 + [0.1] * 30 + [0.01] * 30 + [0.001] * 10)


def test_records_fold_one_by_one_as_they_do_at_once() -> None:
    schedule = schedule_of(shape="plateau", patience=1)
    points = evaluations(ACCURACIES)
    reaction = None
    for point in points:
        reaction = schedule.react([point], reaction)
    assert reaction == schedule.react(points)


def stopped_at(values: list[float], **settings: Any) -> int | None:
    """The number of the evaluation after which the run ends, None if it does not."""
    metric = settings.get("early_stopping_metric", "accuracy")
    config = ScheduleConfig(unit="steps", length=200.0, **{f"early_stopping_{k}": v for k, v in settings.items()})
    for seen in range(1, len(values) + 1):
        points = [(10 * place, {f"validation/{metric}": value}) for place, value in enumerate(values[:seen], 1)]
        if EarlyStopping.of(points, config).ends(config):
            return seen
    return None


@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        ([0.1, 0.3, 0.3, 0.2, 0.3], {"patience": 3}, 5),
        ([0.1, 0.3, 0.3, 0.31, 0.3], {"patience": 3}, None),
        ([0.1, 0.3, 0.3], {"patience": 1}, 3),
        ([0.1, 0.3, 0.305, 0.308], {"patience": 2, "min_delta": 0.01}, 4),
        ([0.1, 0.3, 0.305, 0.311], {"patience": 2, "min_delta": 0.01}, None),  # progress is measured from the best
        ([0.3, 0.2, 0.1, 0.0], {"patience": 0}, None),
    ],
)
def test_early_stopping_ends_after_patience_evaluations_without_progress(values, settings, expected) -> None:
    assert stopped_at(values, **settings) == expected


def test_early_stopping_wants_a_lower_loss() -> None:
    config = ScheduleConfig(early_stopping_patience=1, early_stopping_metric="loss")
    points: list[Point] = [(1, {"test/loss": 2.0, "test/accuracy": 0.5}), (2, {"train/loss": 9.0})]
    progress = EarlyStopping.of([*points, (3, {"test/loss": 1.0, "test/accuracy": 0.1})], config)
    assert (progress.best_value, progress.best_step, progress.ends(config)) == (1.0, 3, False)
    assert progress.after((4, {"test/loss": 1.0}), config).ends(config)
