"""Layer between Tune and its scheduler that writes every report and its outcome to the ledger.

After a restart, a new scheduler gets the same reports again, from the ledger. Tune's own restore would be neither exact
(it forgets the scheduler's state) nor readable (it is a pickle).

ASHA and median stopping take reports one by one, so the known reports are replayed at once, in their order. In
HyperBand and populations, trials wait for each other. There, every trial runs through Tune again and repeats its
reports without training (`trial.py`) until it is back at its last report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.schedulers import TrialScheduler
from rich.console import Console

from pipelines.tuning.schedulers import NUMBER, build_scheduler
from pipelines.tuning.trial_recipes import StudyPlan
from pipelines.tuning.trials import FAILED, Change, State, Trial, TrialReport, Trials

SYNCHRONOUS = ("hyperband", "pbt", "pb2")
Over = Callable[[Trial], None]


@dataclass(frozen=True, slots=True)
class _TrialKey:
    """Trial as a scheduler sees it, in place of Tune's own object, which a restart removes or replaces."""

    trial_id: str


class RecordingScheduler(TrialScheduler):
    """Scheduler that records the decisions of another scheduler in the ledger."""

    _supports_buffered_results = False

    def __init__(self, plan: StudyPlan, ledger: Trials, over: Over) -> None:
        """Wrap the scheduler of the space; `over` is called with each trial that has ended."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._ledger, self._over = ledger, over
        self._reports = plan.space.budget.reports
        self._repeats = plan.space.scheduler.name in SYNCHRONOUS
        self._inner: Any = build_scheduler(plan, self._decide)
        self._seen = dict.fromkeys(range(plan.space.trials), 0)  # trial -> last report that this process has taken
        self._added: set[int] = set()
        self.stopping = False  # while the study stops: a trial that ends now is resumed by the next command
        if not self._repeats:
            self._replay()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle: Tune pickles its arguments, and its files must hold nothing of the study."""
        return {}

    def _replay(self) -> None:
        """Pass all reports to the scheduler again, in the order in which the previous scheduler took them."""
        known = self._ledger.trials
        for trial in known:
            self._add(None, trial.number, None)
            self._seen[trial.number] = trial.last
        reports = [(report, trial) for trial in known for report in trial.reports]
        for report, trial in sorted(reports, key=lambda pair: pair[0].place):
            decision = self._forward(None, self._key_of(trial.number, None), report)
            if report is not trial.reports[-1]:
                continue
            if decision == TrialScheduler.STOP:  # the previous process may have been killed before it recorded the stop
                self._end(trial, "stopped")
            if trial.over:
                self._inner.on_trial_complete(None, self._key_of(trial.number, None), _result(report))

    def _add(self, controller: Any, number: int, trial: Any) -> None:
        if number not in self._added:  # Tune adds a trial again if its process was lost
            self._added.add(number)
            self._inner.on_trial_add(controller, self._key_of(number, trial))

    def _key_of(self, number: int, trial: Any) -> Any:
        """Return the trial as the scheduler sees it; a scheduler that takes reports one by one needs only an id."""
        return trial if self._repeats else _TrialKey(tune_id(number))

    def _forward(self, controller: Any, key: Any, report: TrialReport) -> str:
        """Return the scheduler's decision on a report.

        A trial's last report is not passed on: the trial ends in any case.
        """
        if report.report >= self._reports:
            return str(TrialScheduler.CONTINUE)
        return str(self._inner.on_trial_result(controller, key, _result(report)))

    def _decide(self, number: int, report: int, draw: Callable[[], Change]) -> Change:
        """Return the change that the ledger has for this report; if it has none, draw one and record it."""
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
        if result["report"] <= self._seen[known.number]:  # a repeated report, or Tune's echo of the last one
            return str(TrialScheduler.CONTINUE)
        self._seen[known.number] = result["report"]
        report = TrialReport(
            place=self._ledger.next_place,
            report=result["report"],
            step=result["step"],
            accuracy=result["accuracy"],
            loss=result["loss"],
            time_ms=time.time_ns() // 1_000_000,
        )
        new = report.report > known.last
        if new:  # store the report first: the scheduler may change other trials because of it
            known.reports.append(report)
            self._ledger.keep(known)
        decision = self._forward(tune_controller, self._key_of(known.number, trial), report)
        if new and decision == TrialScheduler.STOP:
            self._end(known, "stopped")
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        known = self._ledger.trials[trial.config[NUMBER]]
        if self.stopping and known.last < self._reports:
            return
        self._end(known, "finished")
        key = self._key_of(known.number, trial)
        if known.reports:
            self._inner.on_trial_complete(tune_controller, key, _result(known.reports[-1]))
        else:  # it failed before its first report
            self._inner.on_trial_remove(tune_controller, key)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Record that a waiting trial is stopped."""
        if self.stopping:
            return
        number = trial.config[NUMBER]
        self._end(self._ledger.trials[number], "stopped")
        self._inner.on_trial_remove(tune_controller, self._key_of(number, trial))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Pass the error on; Tune may retry the trial. If Tune gives it up, only callbacks learn that (`failed`)."""
        self._inner.on_trial_error(tune_controller, self._key_of(trial.config[NUMBER], trial))

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


def _result(report: TrialReport) -> dict[str, Any]:
    return {"report": report.report, "accuracy": report.accuracy, "step": report.step}


def tune_id(number: int) -> str:
    """Return a trial's id in Tune."""
    return f"{number:05d}"


class TrialProgress(Callback):
    """Tune callback that prints starts and ends of trials, and reports trials that Tune gives up to the journal."""

    def __init__(self, ledger: Trials, plan: StudyPlan, console: Console, journal: RecordingScheduler) -> None:
        self._ledger, self._plan, self._console, self._journal = ledger, plan, console, journal

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle: Tune pickles its arguments, and its files must hold nothing of the study."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        known = self._ledger.trials[trial.config[NUMBER]]
        if not known.over:
            values = "  ".join(f"{key.rpartition('.')[2]} {value}" for key, value in known.present.items())
            self._console.print(f"trial {known.number:03d} from report {known.last}: {values}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        known = self._ledger.trials[trial.config[NUMBER]]
        reports = self._plan.space.budget.reports
        outcome = (
            known.reason if known.state == "failed" else f"accuracy {known.accuracy:.2%} at {known.last}/{reports}"
        )
        state = known.state if known.over else "interrupted"
        self._console.print(f"trial {known.number:03d} {state}: {outcome}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._journal.failed(trial)
        known = self._ledger.trials[trial.config[NUMBER]]
        if known.over:
            self._console.print(f"trial {known.number:03d} failed: {known.reason}")
