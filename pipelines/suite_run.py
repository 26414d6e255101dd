"""The life of a suite: train what is missing, measure what is finished, report what there is.

Whatever a later command needs to go on is in the runs' folders and the suite's; nothing is kept here.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Sequence

from rich.console import Console

from infra.storage import Store, open_store
from infra.tracking import Record, RunInfo, Tracker, resolve_tracking
from pipelines import cli
from pipelines.checkpoint import FINISHED, RunFolder
from pipelines.driver import train
from pipelines.measured import Finished, Measured, kept, measure_ensemble, measure_run
from pipelines.outcome import DELIVERY_PATIENCE_S, Outcome
from pipelines.suite import Entry, Suite
from pipelines.suite_plan import SuiteRun
from pipelines.suite_report import figures, rows_of, to_json, to_markdown

TABLE, RESULTS, STATE = "table.md", "results.json", "suite.json"
_NOTE_CHARS = 5000  # that MLflow's tags hold, in all versions


class Reproduction:
    """A suite under way."""

    def __init__(self, suite: Suite, runs: Sequence[SuiteRun], console: Console) -> None:
        self.suite, self.runs, self.console = suite, runs, console
        self.store: Store = open_store(runs[0].recipe.run.home).sub(f"suites/{suite.name}")
        self._measured: dict[str, Measured] = {}  # by name

    @property
    def measured(self) -> list[Measured]:
        """Every run that was measured, in the suite's order, then the ensembles."""
        order = [run.name for run in self.runs] + [entry.name for entry in self.suite.entry if entry.members]
        return [self._measured[name] for name in order if name in self._measured]

    def run(self, only: Sequence[str] = ()) -> str:
        """Bring the suite, or the entries `only`, to its end; returns the id of the suite's MLflow run.

        Raises:
            UserError: as `train` and `measure_run` do; what is measured by then is in the table.
        """
        self.store.check_access(write=True)
        wanted = [run for run in self.runs if not only or run.entry.name in only]
        self._recall()
        for place, run in enumerate(wanted, 1):
            self.console.print(f"{place} of {len(wanted)}: {run.name}")
            self._take((run, train(run.recipe, self.console)))
        for entry in self.suite.entry:
            if entry.members:
                self._take_ensemble(entry)
        self._write()
        return self._publish()

    def _recall(self) -> None:
        """What was measured before, of all entries."""
        for run in self.runs:
            outcome = outcome_of(run)
            found = outcome and kept(self.suite, run.entry, run.name, [(run, outcome)], self.store)
            if found:
                self._measured[run.name] = found

    def _take(self, run: Finished) -> None:
        if run[0].name not in self._measured:
            with self.console.status(f"measuring {run[0].name}"):
                self._measured[run[0].name] = measure_run(self.suite, run, self.store, self.console.print)
            self._write()

    def _take_ensemble(self, entry: Entry) -> None:
        """Where all runs of its members are finished."""
        members = [run for run in self.runs if run.entry.name in entry.members]
        runs = [(run, outcome) for run in members if (outcome := outcome_of(run))]
        if len(runs) < len(members):
            return
        found = kept(self.suite, entry, entry.name, runs, self.store)
        with self.console.status(f"measuring {entry.name}"):
            found = found or measure_ensemble(self.suite, entry, runs, self.store, self.console.print)
        self._measured[entry.name] = found

    def _write(self) -> None:
        """Table and figures, the JSON last: where that is up to date, so is the rest."""
        results = to_json(self.suite, self.measured).encode()
        if self.store.exists(RESULTS) and self.store.read(RESULTS) == results:
            return
        for name, figure in figures(self.suite, self.measured).items():
            image = io.BytesIO()
            figure.savefig(image, format="png")
            self.store.write(f"{name}.png", image.getvalue())
        self.store.write(TABLE, to_markdown(self.suite, self.measured).encode())
        self.store.write(RESULTS, results)

    def _publish(self) -> str:
        """The suite's own run in MLflow: table, figures, means as metrics, and tags that name the runs behind them."""
        folder, results = RunFolder(self.store), self.store.read(RESULTS)
        digest = hashlib.sha256(results).hexdigest()
        state = folder.read_json(STATE, "run_id", "delivered") or {}
        if state.get("delivered") == digest:
            return str(state["run_id"])
        run, table = self.runs[0].recipe.run, to_markdown(self.suite, self.measured)
        links = {f"run.{each.name}": each.run_ids[0] for each in self.measured if len(each.run_ids) == 1}
        tags = {"suite": self.suite.name, "mlflow.note.content": table[:_NOTE_CHARS], **links}
        info = RunInfo(experiment=run.experiment, name=self.suite.name, run_id=state.get("run_id"), tags=tags)
        tracker = Tracker.start(resolve_tracking(cli.local_home(run.home)), info, warn=self.console.print)
        times = state.get("times", 0) + 1
        folder.write_json(STATE, {"run_id": tracker.run_id, "delivered": "", "times": times})
        tracker.text(TABLE, table)
        tracker.text(RESULTS, results.decode())
        for name, figure in figures(self.suite, self.measured).items():
            tracker.figure(f"{name}.png", figure)
        tracker.log(Record(step=times, time_ms=time.time_ns() // 1_000_000, metrics=self._means()))
        if not tracker.finish("FINISHED", DELIVERY_PATIENCE_S):
            raise tracker.away()
        folder.write_json(STATE, {"run_id": tracker.run_id, "delivered": digest, "times": times})
        return tracker.run_id

    def _means(self) -> dict[str, float]:
        cells = [
            (row.entry, name, cell.mean)
            for row in rows_of(self.suite, self.measured)
            for name, cell in row.cells.items()
        ]
        return {f"{name}/{entry}": mean for entry, name, mean in cells if mean is not None}


def outcome_of(run: SuiteRun) -> Outcome | None:
    """What came of a run, where it is finished."""
    done = run_folder(run).read_json(FINISHED, "run_id", "step", "accuracy")
    return Outcome.from_json(done) if done else None


def run_folder(run: SuiteRun) -> RunFolder:
    return RunFolder(open_store(run.uri))
