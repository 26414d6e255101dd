"""MLflow runs of stopped trials: a trial's own driver is gone, so the study's driver brings its run up to date."""

from __future__ import annotations

import queue
import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console

from infra.errors import UserError
from infra.storage import open_store
from infra.tracking.tracker import RunInfo, Status, Tracker, resolve_tracking
from pipelines import cli
from pipelines.checkpoint import RECORDS, RUN, RunFolder
from pipelines.tuning.trial_recipes import StudyPlan
from pipelines.tuning.trials import State, Trial, Trials, run_name

_UPLOAD_TIMEOUT_S = 60.0
_EXIT_GRACE_S = 3.0  # a stopped trial's own driver may still upload
_NAMES: dict[State, str] = {
    "running": "interrupted",
    "stopped": "stopped early",
    "finished": "finished",
    "failed": "failed",
}
_STATUS: dict[State, Status] = {"running": "KILLED", "stopped": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}


class TrialRuns:
    """Thread that closes the MLflow runs of finished and interrupted trials while the study continues.

    It also closes the runs of trials that an earlier process finished.
    """

    def __init__(self, plan: StudyPlan, ledger: Trials, console: Console) -> None:
        self._plan, self._console = plan, console
        self._over: queue.Queue[Trial | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow-children", daemon=True)
        for trial in ledger.trials:
            if trial.over:
                self._over.put(trial)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.put(None)
        self._thread.join()

    def close(self, trial: Trial) -> None:
        self._over.put(trial)

    def _work(self) -> None:
        while trial := self._over.get():
            time.sleep(_EXIT_GRACE_S if trial.state == "stopped" else 0.0)
            try:
                self._close(trial)
            except UserError as error:  # the next command can close the run
                self._console.print(f"trial {trial.number:03d}: {error}")

    def _close(self, trial: Trial) -> None:
        run = self._plan.base.run
        home = open_store(run.home)
        folder = RunFolder(home.sub(run_name(self._plan.space.name, trial)))
        known = folder.read_json(RUN, "run_id")
        if known is None:  # stopped or failed before it had an MLflow run
            return
        tags = {"state": _NAMES[trial.state], **({"reason": trial.reason} if trial.reason else {})}
        info = RunInfo(experiment=run.experiment, name=trial_name(trial), run_id=str(known["run_id"]), tags=tags)
        tracker = Tracker.start(resolve_tracking(cli.local_home(run.home)), info, warn=self._console.print)
        newest = folder.newest(self._console.print, only=(RECORDS,))
        for record in newest.records if newest else ():
            tracker.log(record)
        tracker.finish(_STATUS[trial.state], _UPLOAD_TIMEOUT_S)


def trial_name(trial: Trial) -> str:
    return f"{trial.number:03d}"
