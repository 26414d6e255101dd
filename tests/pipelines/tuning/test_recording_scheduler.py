"""A scheduler that is built anew from the ledger decides what the one before it would have."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from infra.storage import LocalStore
from pipelines.tuning.recording_scheduler import RecordingScheduler
from pipelines.tuning.trial_recipes import StudyPlan
from pipelines.tuning.trials import Trial, Trials
from tests.pipelines.tuning.conftest import Spaces

REPORTS, TRIALS, SLOTS = 9, 12, 3
SCHEDULERS = {"asha": 'name = "asha"\neta = 3', "median": 'name = "median"', "none": 'name = "none"'}


class Stand:
    """What the journal needs of a trial of Tune's."""

    def __init__(self, number: int) -> None:
        self.trial_id, self.config = f"{number:05d}", {"number": number}


class Simulation:
    """Trials that train in no time, three at once; `run` goes on from whatever the ledger holds."""

    def __init__(self, plan: StudyPlan, store: LocalStore, ended: list[int]) -> None:
        self.plan, self.store, self.ended = plan, store, ended

    def run(self, most: int | None = None) -> list[tuple[int, str, tuple[float, ...]]]:
        ledger = Trials(self.store)
        journal = RecordingScheduler(self.plan, ledger, lambda trial: self.ended.append(trial.number))
        running: list[Any] = []
        waiting = [trial.number for trial in ledger.interrupted]
        for _ in range(10_000 if most is None else most):
            while len(running) < SLOTS and (waiting or len(ledger) < TRIALS):
                number = waiting.pop(0) if waiting else ledger.add({}, 1.0).number
                running.append(Stand(number))
                journal.on_trial_add(None, running[-1])
            if not running:
                break
            # the trial that has come least far goes on, which depends on the ledger alone
            stand = min(running, key=lambda each: (ledger.trials[each.config["number"]].last, each.trial_id))
            self._report(journal, ledger.trials[stand.config["number"]], stand, running)
        return [(t.number, t.state, tuple(report.accuracy for report in t.reports)) for t in ledger.trials]

    def _report(self, journal: RecordingScheduler, trial: Trial, stand: Any, running: list[Any]) -> None:
        result = {
            "report": trial.last + 1,
            "step": trial.last + 1,
            "loss": 1.0,
            "accuracy": curve(trial.number)[trial.last],
        }
        decision = journal.on_trial_result(None, stand, result)
        if decision == "STOP" or trial.last == REPORTS:
            journal.on_trial_complete(None, stand, result)
            running.remove(stand)


def curve(number: int) -> Sequence[float]:
    dice = random.Random(number)
    best = dice.random()
    return [best * (1 - 0.5**report) + 0.05 * dice.random() for report in range(1, REPORTS + 1)]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("killed_after", [1, 7, 20, 33])
def test_killed_at_any_report_it_ends_as_if_it_had_not_been(
    spaces: Spaces, tmp_path_factory: pytest.TempPathFactory, scheduler: str, killed_after: int
) -> None:
    changes = {"trials = 4": f"trials = {TRIALS}", "reports = 4": f"reports = {REPORTS}"}
    plan = spaces.plan(f"[scheduler]\n{SCHEDULERS[scheduler]}", **changes)
    whole: list[int] = []
    expected = Simulation(plan, LocalStore(uri=str(tmp_path_factory.mktemp("whole"))), whole).run()
    store, ended = LocalStore(uri=str(tmp_path_factory.mktemp("killed"))), []
    Simulation(plan, store, ended).run(most=killed_after)
    assert Simulation(plan, store, ended).run() == expected
    assert sorted(ended) == sorted(whole) == list(range(TRIALS))  # each came to its end once
    stopped = sum(state == "stopped" for _, state, _ in expected)
    assert stopped >= TRIALS // 2 if scheduler == "asha" else (stopped > 0) == (scheduler == "median")


def test_a_failed_trial_is_over_and_its_reason_kept(spaces: Spaces, tmp_path: Any) -> None:
    ledger = Trials(LocalStore(uri=str(tmp_path / "study")))
    journal = RecordingScheduler(spaces.plan(), ledger, lambda trial: None)
    ledger.add({}, 1.0)
    stand = Stand(0)
    journal.on_trial_add(None, stand)
    told = {"failed": "train/loss is nan at step 5:\n lower optim.lr_per_256", "accuracy": 0.0}
    assert journal.on_trial_result(None, stand, told) == "STOP"
    journal.on_trial_complete(None, stand, {})
    (trial,) = Trials(LocalStore(uri=str(tmp_path / "study"))).trials
    assert (trial.state, trial.reason) == ("failed", "train/loss is nan at step 5: lower optim.lr_per_256")


def test_what_was_reported_before_is_not_taken_again(spaces: Spaces, tmp_path: Any) -> None:
    ledger = Trials(LocalStore(uri=str(tmp_path / "study")))
    journal = RecordingScheduler(spaces.plan(), ledger, lambda trial: None)
    ledger.add({}, 1.0)
    stand = Stand(0)
    journal.on_trial_add(None, stand)
    for report in (1, 1, 2, 1, 2):
        journal.on_trial_result(None, stand, {"report": report, "step": report, "accuracy": 0.5, "loss": 1.0})
    assert [each.report for each in ledger.trials[0].reports] == [1, 2]
