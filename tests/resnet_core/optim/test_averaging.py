"""Averages of the weights, update by update, against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resnet_core.optim.averaging import WeightAverage, equal, exponential

WEIGHTS = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0, 6.0]


def scalar(value: float = 0.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, value)
    return model


def averages(kept, first: float = 7.0) -> list[float]:
    """The average after each step of a run whose weights are WEIGHTS."""
    model = scalar(first)
    average = WeightAverage(model, kept)
    seen = []
    for step, weight in enumerate(WEIGHTS):
        nn.init.constant_(model.weight, weight)
        average.update(model, step)
        seen.append(float(average.model.get_parameter("weight")))
    return seen


def test_exponential() -> None:
    expected, average = [], 7.0
    for weight in WEIGHTS:
        average = 0.9 * average + 0.1 * weight
        expected.append(average)
    assert averages(exponential(0.9)) == pytest.approx(expected, rel=1e-13)


def test_every_third_step_counts_and_the_others_leave_the_average_alone() -> None:
    third, sixth = 0.9 * 7.0 + 0.1 * WEIGHTS[2], 0.9 * (0.9 * 7.0 + 0.1 * WEIGHTS[2]) + 0.1 * WEIGHTS[5]
    assert averages(exponential(0.9, every=3)) == pytest.approx([7.0, 7.0, third, third, third, sixth, sixth, sixth])


@pytest.mark.parametrize("every", [1, 2])
def test_warm_up_keeps_little_of_the_beginning(every: int) -> None:
    expected, average = [], 7.0
    for step, weight in enumerate(WEIGHTS):
        if (step + 1) % every == 0:
            update = (step + 1) // every - 1
            keep = min(0.3, (1 + update) / (10 + update))
            average = keep * average + (1 - keep) * weight
        expected.append(average)
    assert averages(exponential(0.3, every=every, warmup=True)) == pytest.approx(expected, rel=1e-13)
    assert exponential(0.3, warmup=True)(0) == 0.1
    assert exponential(0.3, warmup=True)(100) == 0.3


def test_equal_average_is_the_weights_until_it_begins_and_their_mean_since() -> None:
    expected = WEIGHTS[:3] + [sum(WEIGHTS[3 : stop + 1]) / (stop - 2) for stop in range(3, 8)]
    assert averages(equal(3)) == pytest.approx(expected, rel=1e-13)
    assert averages(equal(3))[:4] == WEIGHTS[:4]


def test_torchs_averaged_model_agrees() -> None:
    model = scalar()
    theirs = torch.optim.swa_utils.AveragedModel(model)
    for weight in WEIGHTS[3:]:
        nn.init.constant_(model.weight, weight)
        theirs.update_parameters(model)
    assert averages(equal(3))[-1] == pytest.approx(float(theirs.module.get_parameter("weight").detach()), rel=1e-13)
