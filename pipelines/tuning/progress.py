"""What a person sees of a study: a line whenever a trial begins or ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from rich.console import Console

from pipelines.tuning.ledger import Ledger
from pipelines.tuning.plan import Plan
from pipelines.tuning.schedulers import NUMBER

if TYPE_CHECKING:
    from pipelines.tuning.journal import Journal


class Progress(Callback):
    """Tells of trials; and the journal, of one that Tune has given up."""

    def __init__(self, ledger: Ledger, plan: Plan, console: Console, journal: Journal) -> None:
        self._ledger, self._plan, self._console, self._journal = ledger, plan, console, journal

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given; of the study there is nothing in its files."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        known = self._ledger.trials[trial.config[NUMBER]]
        if not known.over:
            values = "  ".join(f"{key.rpartition('.')[2]} {value}" for key, value in known.present.items())
            self._console.print(f"trial {known.number:03d} from report {known.last}: {values}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        known = self._ledger.trials[trial.config[NUMBER]]
        reports = self._plan.space.budget.reports
        told = known.reason if known.state == "failed" else f"accuracy {known.accuracy:.2%} at {known.last}/{reports}"
        state = known.state if known.over else "interrupted"
        self._console.print(f"trial {known.number:03d} {state}: {told}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._journal.failed(trial)
        known = self._ledger.trials[trial.config[NUMBER]]
        if known.over:
            self._console.print(f"trial {known.number:03d} failed: {known.reason}")
