"""Ledger of a study: JSON files next to its runs, the only state that a restart reads.

    RUN_HOME/studies/NAME/study.json          the space that it began with, its MLflow run
    RUN_HOME/studies/NAME/trials/003.json     values, reports, state; rewritten atomically at each report

Only the study's driver writes these files. The state of searchers and schedulers is always rebuilt from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from infra.errors import UserError
from infra.storage import Store

State = Literal["running", "stopped", "finished", "failed"]
STUDY = "study.json"
FAILED = "failed"  # key of a report to Tune that says why the trial cannot continue


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialReport:
    """One evaluation of a trial."""

    place: int  # index among all reports of the study, in the order in which the scheduler took them
    report: int  # 1 … budget.reports, after equal shares of the trial's compute
    step: int
    accuracy: float
    loss: float
    time_ms: int  # since the epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Change of a trial in population-based training: new values, and the weights of another trial."""

    report: int  # after which the change happens
    donor: int  # number of the trial that gives its weights; the trial itself if only values change
    step: int  # of the donor's checkpoint
    values: dict[str, Any]


@dataclass(kw_only=True, slots=True)
class Trial:
    """One trial: its values, reports and state."""

    number: int
    values: dict[str, Any]  # at the start
    compute: float  # of the whole trial: multiply-adds x images
    state: State = "running"
    reason: str = ""  # why a trial failed
    reports: list[TrialReport] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.state != "running"

    @property
    def last(self) -> int:
        """Return the number of the last report, 0 before the first."""
        return self.reports[-1].report if self.reports else 0

    @property
    def present(self) -> dict[str, Any]:
        """Return the values that the trial trains with now."""
        return self.changes[-1].values if self.changes else self.values

    @property
    def accuracy(self) -> float:
        """Return the accuracy at the last report, 0 before the first."""
        return self.reports[-1].accuracy if self.reports else 0.0

    def spent(self, reports: int) -> float:
        """Return the compute spent up to the last report; a whole trial has `reports` of them."""
        return self.compute * self.last / reports

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Trial:
        reports = [TrialReport(**each) for each in content["reports"]]
        changes = [Change(**each) for each in content["changes"]]
        return cls(**{**content, "reports": reports, "changes": changes})


class Trials:
    """The trials of a study, in storage."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.trials: list[Trial] = sorted(self._read(), key=lambda trial: trial.number)

    def __len__(self) -> int:
        return len(self.trials)

    @property
    def next_place(self) -> int:
        return sum(len(trial.reports) for trial in self.trials)

    @property
    def interrupted(self) -> list[Trial]:
        """Return the trials that an earlier process began and did not finish."""
        return [trial for trial in self.trials if not trial.over]

    @property
    def failed(self) -> list[Trial]:
        """Return the trials that ended with an error."""
        return [trial for trial in self.trials if trial.state == "failed"]

    def retry_failed(self) -> None:
        """Mark failed trials to run again, with the same numbers and run folders, from their last checkpoints."""
        for trial in self.failed:
            trial.state, trial.reason = "running", ""
            self.keep(trial)

    def add(self, values: dict[str, Any], compute: float) -> Trial:
        """Add a new trial and store it before anything runs; return it."""
        trial = Trial(number=len(self.trials), values=values, compute=compute)
        self.trials.append(trial)
        self.keep(trial)
        return trial

    def keep(self, trial: Trial) -> None:
        self.store.write(trial_file(trial.number), json.dumps(asdict(trial), indent=1).encode())

    def _read(self) -> Iterable[Trial]:
        for path, _ in self.store.list("trials"):
            try:
                yield Trial.from_json(json.loads(self.store.read(path)))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.store.description}/{path} is damaged ({error}): delete it and the files after it, and run "
                    "the same command again"
                ) from error


def trial_file(number: int) -> str:
    return f"trials/{number:03d}.json"


def run_name(study: str, trial: Trial) -> str:
    """Return the name of the trial's current run; each change that a population makes starts a new run."""
    return f"{study}-{trial.number:03d}" + (f"-{len(trial.changes)}" if trial.changes else "")
