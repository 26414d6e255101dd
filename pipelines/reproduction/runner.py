"""Run of a suite: train missing runs, measure finished ones, report all measurements.

Everything that a later command needs to resume is in the folders of the runs and of the suite.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from infra.interruption import Interrupted
from infra.storage import Store, open_store
from infra.tracking.tracker import MetricPoint, RunInfo, Tracker, resolve_tracking
from pipelines import cli
from pipelines.checkpoint import FINISHED, RunFolder
from pipelines.reproduction.measurements import Finished, Measurements, kept, measure_ensemble, measure_run
from pipelines.reproduction.plan import SuiteRun
from pipelines.reproduction.report import figures, rows_of, to_json, to_markdown
from pipelines.reproduction.spec import Entry, Suite
from pipelines.training.driver import train
from pipelines.training.result import DELIVERY_TIMEOUT_S, Outcome

TABLE, RESULTS, STATE = "table.md", "results.json", "suite.json"
_STATE_KEYS = ("run_id", "delivered", "times")
_NOTE_CHARS = 5000  # limit of MLflow's tags in all versions


class Reproduction:
    """Training and measuring of a suite's runs."""

    def __init__(self, suite: Suite, runs: Sequence[SuiteRun], console: Console) -> None:
        self.suite, self.runs, self.console = suite, runs, console
        self.store: Store = open_store(runs[0].recipe.run.home).sub(f"suites/{suite.name}")
        self._measured: dict[str, Measurements] = {}  # by name of the run or ensemble

    @property
    def measured(self) -> list[Measurements]:
        """Return the measurements of runs, in the suite's order, then those of ensembles."""
        order = [run.name for run in self.runs] + [entry.name for entry in self.suite.entry if entry.members]
        return [self._measured[name] for name in order if name in self._measured]

    def run(self, only: Sequence[str] = ()) -> str:
        """Train and measure all runs, or those of the entries `only`; return the id of the suite's MLflow run.

        Raises:
            UserError: `train` or `measure_run` raised it; the table has everything measured before.
        """
        self.store.check_access(write=True)
        wanted = [run for run in self.runs if not only or run.entry.name in only]
        self._recall()
        state = RunFolder(self.store).read_json(STATE, *_STATE_KEYS)
        if state and state["delivered"] == self._digest and all(map(outcome_of, wanted)):
            self.console.print(f"suite {self.suite.name} is finished: nothing to do")
            return str(state["run_id"])
        tracker = self._start_tracker(state)
        with self._progress_on_interrupt(wanted), tracker.finished_after(DELIVERY_TIMEOUT_S):
            self._train(wanted, tracker.run_id)
            for entry in self.suite.entry:
                self._take_ensemble(entry)
            self._write()
            times = state["times"] + 1 if state else 1
            self._publish(tracker, times)
        self._remember(tracker.run_id, self._digest, times)
        return tracker.run_id

    def _train(self, wanted: Sequence[SuiteRun], run_id: str) -> None:
        """Train the runs to their ends, one after another, and measure each."""
        for place, run in enumerate(wanted, 1):
            self.console.print(f"{place} of {len(wanted)}: {run.name}")
            self._take((run, train(run.recipe, self.console, parent_run_id=run_id)))

    @contextmanager
    def _progress_on_interrupt(self, wanted: Sequence[SuiteRun]) -> Iterator[None]:
        """Replace a KeyboardInterrupt by `Interrupted`, which says how many runs are finished."""
        try:
            yield
        except KeyboardInterrupt as error:
            where = str(error).partition(":")[0] or "interrupted"
            finished = sum(map(bool, map(outcome_of, wanted)))
            raise Interrupted(f"{where}, {finished} of {len(wanted)} runs finished: the same command resumes") from None

    def _recall(self) -> None:
        """Load earlier measurements of all entries from the suite's folder."""
        for run in self.runs:
            if outcome := outcome_of(run):
                self._keep(run.name, kept(self.suite, run.entry, run.name, [(run, outcome)], self.store))
        for entry in self.suite.entry:
            if runs := self._finished_members(entry):
                self._keep(entry.name, kept(self.suite, entry, entry.name, runs, self.store))

    def _keep(self, name: str, measured: Measurements | None) -> None:
        if measured:
            self._measured[name] = measured

    def _finished_members(self, entry: Entry) -> list[Finished]:
        """Return the runs of an ensemble's members if all are finished, else []."""
        members = [run for run in self.runs if run.entry.name in (entry.members or ())]
        runs = [(run, outcome) for run in members if (outcome := outcome_of(run))]
        return runs if len(runs) == len(members) else []

    def _take(self, run: Finished) -> None:
        if run[0].name not in self._measured:
            with self.console.status(f"measuring {run[0].name}"):
                self._measured[run[0].name] = measure_run(self.suite, run, self.store, self.console.print)
            self._write()

    def _take_ensemble(self, entry: Entry) -> None:
        runs = self._finished_members(entry)
        if runs and entry.name not in self._measured:
            with self.console.status(f"measuring {entry.name}"):
                found = measure_ensemble(self.suite, entry, runs, self.store, self.console.print)
            self._measured[entry.name] = found

    def _write(self) -> None:
        """Write table and figures, the JSON last: if the JSON is up to date, so is the rest."""
        results = to_json(self.suite, self.measured).encode()
        if self.store.exists(RESULTS) and self.store.read(RESULTS) == results:
            return
        for name, figure in figures(self.suite, self.measured).items():
            image = io.BytesIO()
            figure.savefig(image, format="png")
            self.store.write(f"{name}.png", image.getvalue())
        self.store.write(TABLE, to_markdown(self.suite, self.measured).encode())
        self.store.write(RESULTS, results)

    @property
    def _digest(self) -> str:
        """Return the sha256 of all measurements."""
        return hashlib.sha256(to_json(self.suite, self.measured).encode()).hexdigest()

    def _remember(self, run_id: str, delivered: str, times: int) -> None:
        state = {"run_id": run_id, "delivered": delivered, "times": times}
        RunFolder(self.store).write_json(STATE, state)

    def _start_tracker(self, state: dict[str, Any] | None) -> Tracker:
        """Start or resume the suite's own MLflow run, the parent of its entries' runs."""
        run = self.runs[0].recipe.run
        info = RunInfo(
            experiment=run.experiment,
            name=self.suite.name,
            run_id=state["run_id"] if state else None,
            tags={"suite": self.suite.name},
        )
        tracker = Tracker.start(resolve_tracking(cli.local_home(run.home)), info, warn=self.console.print)
        if not state:
            self._remember(tracker.run_id, "", 0)
        return tracker

    def _publish(self, tracker: Tracker, times: int) -> None:
        """Send table, figures, means as metrics, and tags with the ids of the entries' runs to MLflow."""
        table = to_markdown(self.suite, self.measured)
        links = {f"run.{each.name}": each.run_ids[0] for each in self.measured if len(each.run_ids) == 1}
        tracker.tag({"mlflow.note.content": table[:_NOTE_CHARS], **links})
        tracker.text(TABLE, table)
        tracker.text(RESULTS, self.store.read(RESULTS).decode())
        for name, figure in figures(self.suite, self.measured).items():
            tracker.figure(f"{name}.png", figure)
        tracker.log(MetricPoint(step=times, time_ms=time.time_ns() // 1_000_000, metrics=self._means()))

    def _means(self) -> dict[str, float]:
        cells = [
            (row.entry, name, cell.mean)
            for row in rows_of(self.suite, self.measured)
            for name, cell in row.cells.items()
        ]
        return {f"{name}/{entry}": mean for entry, name, mean in cells if mean is not None}


def outcome_of(run: SuiteRun) -> Outcome | None:
    """Return the outcome of a run; None if the run is not finished."""
    done = run_folder(run).read_json(FINISHED, "run_id", "step", "accuracy")
    return Outcome.from_json(done) if done else None


def run_folder(run: SuiteRun) -> RunFolder:
    return RunFolder(open_store(run.uri))


def listing(runs: list[SuiteRun]) -> Table:
    """Return a table of the runs of a suite and their states."""
    table = Table("entry", "seed", "run", "state", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for run in runs:
        table.add_row(run.entry.name, str(run.seed), run.name, _state(run))
    return table


def _state(run: SuiteRun) -> str:
    outcome = outcome_of(run)
    if outcome:
        return f"finished, {outcome.step} steps"
    steps = run_folder(run).steps()
    return f"at step {steps[-1]}" if steps else "not begun"
