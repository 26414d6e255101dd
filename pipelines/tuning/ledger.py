"""What a study knows, as JSON beside its runs: the only thing that a restart reads.

    RUN_HOME/studies/NAME/study.json          the space it began with, its MLflow run
    RUN_HOME/studies/NAME/trials/003.json     values, reports, state; written anew at each report, whole or not at all

One process writes: the study's driver. Searchers and schedulers keep no state of their own that is not built from this.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """One evaluation of a trial."""

    place: int  # among all reports of the study, in the order in which the scheduler took them
    report: int  # 1 … budget.reports: shares of the trial's compute
    step: int
    accuracy: float
    loss: float
    time_ms: int  # since the epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A trial that goes on from another's weights with other values: population-based training."""

    report: int  # after which
    donor: int  # trial's number; its own where only the values changed
    step: int  # of the donor's checkpoint
    values: dict[str, Any]


@dataclass(kw_only=True, slots=True)
class Trial:
    """One trial, as far as it has come."""

    number: int
    values: dict[str, Any]  # it began with
    compute: float  # of the whole trial: multiply-adds x images
    state: State = "running"
    reason: str = ""  # of a failed one
    reports: list[Report] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.state != "running"

    @property
    def last(self) -> int:
        """Reports taken."""
        return self.reports[-1].report if self.reports else 0

    @property
    def present(self) -> dict[str, Any]:
        """The values that it trains with now."""
        return self.changes[-1].values if self.changes else self.values

    @property
    def accuracy(self) -> float:
        """At its last report."""
        return self.reports[-1].accuracy if self.reports else 0.0

    def spent(self, reports: int) -> float:
        """Compute spent until the last report, of `reports` in all."""
        return self.compute * self.last / reports

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Trial:
        reports = [Report(**each) for each in content["reports"]]
        changes = [Change(**each) for each in content["changes"]]
        return cls(**{**content, "reports": reports, "changes": changes})


class Ledger:
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
        """Trials that an earlier process began and did not bring to an end."""
        return [trial for trial in self.trials if not trial.over]

    @property
    def failed(self) -> list[Trial]:
        """Trials that ended with an error."""
        return [trial for trial in self.trials if trial.state == "failed"]

    def retry_failed(self) -> None:
        """Have failed trials run again: under their numbers, in their run folders, from their last checkpoints."""
        for trial in self.failed:
            trial.state, trial.reason = "running", ""
            self.keep(trial)

    def add(self, values: dict[str, Any], compute: float) -> Trial:
        """A new trial, in storage before anything runs."""
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
    """Of the run that the trial is now: one for each change that a population made, and each goes on from another."""
    return f"{study}-{trial.number:03d}" + (f"-{len(trial.changes)}" if trial.changes else "")
