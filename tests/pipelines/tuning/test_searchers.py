"""Searchers are functions of the ledger: nothing to save, nothing to lose."""

from __future__ import annotations

import statistics

import pytest

from pipelines.tuning.searchers import propose
from pipelines.tuning.space import Space
from pipelines.tuning.trials import State, Trial, TrialReport
from tests.pipelines.tuning.conftest import Spaces


def told(space: Space, number: int, values: dict[str, object], accuracy: float, state: State = "finished") -> Trial:
    reports = [TrialReport(place=number, report=space.budget.reports, step=1, accuracy=accuracy, loss=1.0, time_ms=0)]
    return Trial(number=number, values=values, compute=1.0, state=state, reports=reports)


def test_a_grid_is_its_points_in_order(spaces: Spaces) -> None:
    space = spaces.plan('[searcher]\nname = "grid"', **{"trials = 4": ""}).space
    assert space.trials == 6
    found = [propose(space, number, []) for number in range(6)]
    assert [each["optim.lr_per_256"] for each in found] == pytest.approx([0.1, 0.1, 0.632456, 0.632456, 4.0, 4.0])
    assert [each["model.depths"] for each in found] == [[1, 1, 1], [2, 1, 1]] * 3


def test_random_draws_depend_on_seed_and_number_only(spaces: Spaces) -> None:
    space, other = spaces.plan().space, spaces.plan("[searcher]\nseed = 1").space
    first = [propose(space, number, []) for number in range(4)]
    assert [propose(space, number, []) for number in range(4)] == first
    assert len({each["optim.lr_per_256"] for each in first}) == 4
    assert propose(other, 0, []) != first[0]


TPE = '[searcher]\nname = "tpe"\nstartup = 8'


def test_tpe_goes_where_accuracy_is_and_is_the_same_after_a_restart(spaces: Spaces) -> None:
    """Accuracy falls with the distance of the rate from 1."""
    space = spaces.plan(TPE).space
    trials: list[Trial] = []
    for number in range(32):
        values = propose(space, number, trials)
        again = [Trial.from_json(_json(trial)) for trial in trials]
        assert propose(space, number, again) == values
        rate = float(values["optim.lr_per_256"])
        trials.append(told(space, number, values, accuracy=1 - abs(rate - 1.0) / 4))
    distance = [abs(float(trial.values["optim.lr_per_256"]) - 1.0) for trial in trials]
    assert statistics.median(distance[-12:]) < 0.7 * statistics.median(distance[:8])


@pytest.mark.parametrize("state", ["running", "stopped", "failed", "finished"])
def test_tpe_takes_trials_in_every_state(spaces: Spaces, state: State) -> None:
    space = spaces.plan(TPE).space
    trials = [told(space, number, propose(space, number, []), 0.5, state) for number in range(8)]
    assert propose(space, 8, trials).keys() == space.space.keys()


def _json(trial: Trial) -> dict[str, object]:
    import dataclasses
    import json

    found: dict[str, object] = json.loads(json.dumps(dataclasses.asdict(trial)))
    return found
