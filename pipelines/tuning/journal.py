"""Between Tune and its scheduler: every report goes into the ledger together with what came of it.

After a restart the scheduler is built anew and told, from the ledger, what it was told before. Tune's own restore would
be neither exact (it forgets its scheduler's state) nor readable (it is a pickle).

ASHA and median stopping take reports one by one, so that those known are told to them at once, in their order. In
HyperBand and populations trials wait for each other; there, every trial goes through Tune again and repeats its
reports without training (`trial.py`), and comes to where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.schedulers import TrialScheduler

from pipelines.tuning.ledger import Change, Ledger, Report, State, Trial
from pipelines.tuning.plan import Plan
from pipelines.tuning.schedulers import NUMBER, build_scheduler

SYNCHRONOUS = ("hyperband", "pbt", "pb2")
FAILED = "failed"  # key of a report that says why the trial cannot go on
Over = Callable[[Trial], None]


@dataclass(frozen=True, slots=True)
class _Stand:
    """Stands for a trial where there is none of Tune's, or no longer the same."""

    trial_id: str


class Journal(TrialScheduler):
    """A scheduler that writes down what another decides."""

    _supports_buffered_results = False

    def __init__(self, plan: Plan, ledger: Ledger, over: Over) -> None:
        """`over` is told of a trial when it has come to its end."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._ledger, self._over = ledger, over
        self._reports = plan.space.budget.reports
        self._repeats = plan.space.scheduler.name in SYNCHRONOUS
        self._inner: Any = build_scheduler(plan, self._decide)
        self._seen = dict.fromkeys(range(plan.space.trials), 0)  # by this process, trial -> last report
        self._added: set[int] = set()
        self.stopping = False  # the study: a trial that ends now goes on with the next command
        if not self._repeats:
            self._tell_again()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given; of the study there is nothing in its files."""
        return {}

    def _tell_again(self) -> None:
        """All reports, in the order in which the scheduler before this one took them."""
        known = self._ledger.trials
        for trial in known:
            self._add(None, trial.number, None)
            self._seen[trial.number] = trial.last
        told = [(report, trial) for trial in known for report in trial.reports]
        for report, trial in sorted(told, key=lambda pair: pair[0].place):
            decision = self._feed(None, self._stand(trial.number, None), report)
            if report is not trial.reports[-1]:
                continue
            if decision == TrialScheduler.STOP:  # the process before this one may have been killed at that very moment
                self._end(trial, "stopped")
            if trial.over:
                self._inner.on_trial_complete(None, self._stand(trial.number, None), _result(report))

    def _add(self, controller: Any, number: int, trial: Any) -> None:
        if number not in self._added:  # Tune adds a trial again when its process was lost
            self._added.add(number)
            self._inner.on_trial_add(controller, self._stand(number, trial))

    def _stand(self, number: int, trial: Any) -> Any:
        """What the scheduler knows a trial by: one that takes reports one by one needs no more than an id."""
        return trial if self._repeats else _Stand(tune_id(number))

    def _feed(self, controller: Any, stand: Any, report: Report) -> str:
        """What the scheduler says to a report; the last one of a trial ends it whatever it says."""
        if report.report >= self._reports:
            return str(TrialScheduler.CONTINUE)
        return str(self._inner.on_trial_result(controller, stand, _result(report)))

    def _decide(self, number: int, report: int, draw: Callable[[], Change]) -> Change:
        """The change that the ledger has, or else the one drawn, which it has from now on."""
        trial = self._ledger.trials[number]
        for change in trial.changes:
            if change.report == report:
                return change
        trial.changes.append(draw())
        self._ledger.keep(trial)
        return trial.changes[-1]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._add(tune_controller, trial.config[NUMBER], trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        known = self._ledger.trials[trial.config[NUMBER]]
        if FAILED in result:
            self._end(known, "failed", result[FAILED])
            return str(TrialScheduler.STOP)
        if result["report"] <= self._seen[known.number]:  # repeated, or Tune's echo of the last one
            return str(TrialScheduler.CONTINUE)
        self._seen[known.number] = result["report"]
        report = Report(
            place=self._ledger.next_place,
            report=result["report"],
            step=result["step"],
            accuracy=result["accuracy"],
            loss=result["loss"],
            time_ms=time.time_ns() // 1_000_000,
        )
        new = report.report > known.last
        if new:  # in storage before anything comes of it: a scheduler may change other trials by it
            known.reports.append(report)
            self._ledger.keep(known)
        decision = self._feed(tune_controller, self._stand(known.number, trial), report)
        if new and decision == TrialScheduler.STOP:
            self._end(known, "stopped")
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        known = self._ledger.trials[trial.config[NUMBER]]
        if self.stopping and known.last < self._reports:
            return
        self._end(known, "finished")
        stand = self._stand(known.number, trial)
        if known.reports:
            self._inner.on_trial_complete(tune_controller, stand, _result(known.reports[-1]))
        else:  # it failed before it had any
            self._inner.on_trial_remove(tune_controller, stand)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """A trial that was waiting is stopped."""
        if self.stopping:
            return
        number = trial.config[NUMBER]
        self._end(self._ledger.trials[number], "stopped")
        self._inner.on_trial_remove(tune_controller, self._stand(number, trial))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """It may be tried again: that it is over, Tune tells its callbacks only (`failed`)."""
        self._inner.on_trial_error(tune_controller, self._stand(trial.config[NUMBER], trial))

    def failed(self, trial: Any) -> None:
        if self.stopping:
            return
        lines = Path(trial.error_file).read_text().split("\n") if trial.error_file else []
        reason = next((line for line in reversed(lines) if line.strip()), "its process was lost")
        self._end(self._ledger.trials[trial.config[NUMBER]], "failed", reason)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        return self._inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        return str(self._inner.debug_string())

    def _end(self, trial: Trial, state: State, reason: str = "") -> None:
        if trial.over:
            return
        trial.state, trial.reason = state, " ".join(reason.split())[:500]
        self._ledger.keep(trial)
        self._over(trial)


def _result(report: Report) -> dict[str, Any]:
    return {"report": report.report, "accuracy": report.accuracy, "step": report.step}


def tune_id(number: int) -> str:
    """Of a trial in Tune."""
    return f"{number:05d}"
