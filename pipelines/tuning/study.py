"""Run of a study: find the data and the known trials, run Tune over the missing ones, report to MLflow.

Everything that a later command needs to resume is in the ledger and in the runs' folders. Tune's own files are in a
temporary folder and are never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tempfile
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console

import infra.cluster
from infra.capacity import cluster_total
from infra.errors import UserError
from infra.interruption import asking, explained
from infra.storage import open_store
from infra.tracking.tracker import RunInfo, Tracker, resolve_tracking
from pipelines import cli
from pipelines.checkpoint import RunFolder
from pipelines.cli.next_command import command
from pipelines.config.paths import shown
from pipelines.training import WORKER_MODULES
from pipelines.training.driver import find_data, train
from pipelines.training.placement import Placement, place
from pipelines.training.result import DELIVERY_TIMEOUT_S
from pipelines.training.start_weights import share_start
from pipelines.training.summary import summarise
from pipelines.tuning.mlflow_runs import TrialRuns
from pipelines.tuning.report import publish, write_report
from pipelines.tuning.trial_recipes import StudyPlan
from pipelines.tuning.trials import STUDY, Trial, Trials, run_name

if TYPE_CHECKING:
    from pipelines.tuning.trial import TrialJob

_STATE_KEYS = ("key", "run_id", "digest", "delivered")
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "5",
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's handler ends trials without a checkpoint; `stopping.py` replaces it
}
_RESTARTS = 2  # of a trial's own process; run.max_failures counts those of its workers


class Study:
    """A study: its plan, its ledger and its folder."""

    def __init__(self, plan: StudyPlan, console: Console) -> None:
        self.plan, self.console = plan, console
        home = open_store(plan.base.run.home)
        home.check_access(write=True)
        self.store = home.sub(f"studies/{plan.space.name}")
        self.ledger = Trials(self.store)
        self._check_same()

    @property
    def over(self) -> bool:
        return len(self.ledger) == self.plan.space.trials and not self.ledger.interrupted

    def run(self) -> str:
        """Train all trials that are not over yet, write the report, and return the id of the study's MLflow run.

        Raises:
            UserError: a problem that the user can fix; everything reported so far is kept.
        """
        state = self._state()
        if self.over and state["delivered"] == self._delivery:
            self.console.print(f"study {self.plan.space.name} is finished: nothing to do{self._failures()}")
            return str(state["run_id"])
        infra.cluster.connect(min_cpus=1, modules=WORKER_MODULES)
        placement = place(self.plan.base.run)
        placement.check()
        self.console.print(placement.line)
        manifest = find_data(self.plan.base, open_store(self.plan.base.data.uri), self.console)
        samples = manifest.splits[self.plan.base.data.train_split]
        for address in self.plan.starts():  # once, not by each trial's driver on its node
            share_start(address, open_store(self.plan.base.run.home), self.console.print)
        tracker = self._start_tracker(state)
        with explained(self._interrupted_line), tracker.finished_after(DELIVERY_TIMEOUT_S):
            if not self.over:
                self._tune(tracker, samples, placement)
            write_report(self.plan, self.ledger, self.store)
            publish(self.plan, self.ledger, self.store, tracker)
        self._remember({**state, "run_id": tracker.run_id, "delivered": self._delivery})
        return tracker.run_id

    def _failures(self) -> str:
        """Return how many trials failed, why the first did, and how to retry them; "" if none failed."""
        failed = self.ledger.failed
        if not failed:
            return ""
        first = f"trial {failed[0].number:03d}: {failed[0].reason}"
        return f". {len(failed)} of {len(self.ledger)} trials failed ({first}): --retry-failed tries them again"

    def _interrupted_line(self) -> str:
        """Return the line that is printed after a Ctrl-C."""
        over = len(self.ledger) - len(self.ledger.interrupted)
        return f"interrupted, {over} of {self.plan.space.trials} trials are over: the same command resumes"

    def _tune(self, tracker: Tracker, samples: int, placement: Placement) -> None:
        from ray import tune

        from pipelines.ray_internals.tune import keep_secrets_out_of_actors
        from pipelines.tuning.placement_groups import GroupKeeper
        from pipelines.tuning.recording_scheduler import SYNCHRONOUS, RecordingScheduler, TrialProgress
        from pipelines.tuning.searchers import PlannedTrials
        from pipelines.tuning.stopping import Stops, stop_study
        from pipelines.tuning.trial import TrialJob

        space = self.plan.space
        at_once = space.budget.concurrent or concurrent(placement)
        waiting = space.trials if space.scheduler.name in SYNCHRONOUS else 1  # all of a population, else the next one
        keep_secrets_out_of_actors()
        os.environ.update({**_QUIET, "TUNE_MAX_PENDING_TRIALS_PG": str(waiting)})
        job = TrialJob(
            plan=self.plan,
            study_uri=self.store.uri,
            parent_run_id=tracker.run_id,
            samples_per_epoch=samples,
            repeats=space.scheduler.name in SYNCHRONOUS,
            data_cpus=data_cpus(placement, at_once),
            keeper=GroupKeeper.remote(),  # type: ignore[attr-defined]  # Ray adds `remote`
            stops=Stops.remote(),  # type: ignore[attr-defined]
        )
        self.console.print(f"{space.trials} trials, {at_once} at once: {shown(self.store.description)}")
        with TrialRuns(self.plan, self.ledger, self.console) as children, tempfile.TemporaryDirectory() as scratch:
            journal = RecordingScheduler(self.plan, self.ledger, children.close)
            tuner = tune.Tuner(
                tune.with_resources(_trainable(job), _place(at_once)),
                tune_config=tune.TuneConfig(
                    search_alg=PlannedTrials(self.plan, self.ledger, samples),
                    scheduler=journal,
                    num_samples=space.trials,
                ),
                run_config=tune.RunConfig(
                    name=space.name,
                    storage_path=scratch,
                    failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                    callbacks=[TrialProgress(self.ledger, self.plan, self.console, journal)],
                    verbose=0,
                ),
            )

            def stop() -> bool:
                journal.stopping = True
                tracker.killed()
                return stop_study(job.stops, self.console)

            with asking(stop, signal.SIGTERM, signal.SIGINT):
                tuner.fit()
            if not self.over:
                for trial in self.ledger.interrupted:
                    children.close(trial)
                raise KeyboardInterrupt  # Tune returns from a stop as from a normal end

    def _start_tracker(self, state: dict[str, Any]) -> Tracker:
        """Start or resume the study's own MLflow run, the parent of its trials' runs."""
        space, run = self.plan.space, self.plan.base.run
        info = RunInfo(
            experiment=run.experiment,
            name=space.name,
            run_id=state["run_id"] or None,
            once=state["key"],
            params={"title": space.title, "scheduler": space.scheduler.name, "searcher": space.searcher.name}
            | {f"budget.{key}": value for key, value in space.budget.model_dump().items()}
            | {f"space.{key}": value.model_dump(exclude_defaults=True) for key, value in space.space.items()},
            tags={"study": space.name},
        )
        tracker = Tracker.start(resolve_tracking(cli.local_home(run.home)), info, warn=self.console.print)
        self._remember({**state, "run_id": tracker.run_id})
        return tracker

    @property
    def _digest(self) -> str:
        """Return the sha256 of everything that decides the trials."""
        asked = {"space": self.plan.space.model_dump(mode="json", exclude={"final", "title"})}
        asked["recipe"] = self.plan.base.trajectory()
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @property
    def _delivery(self) -> str:
        """Return the sha256 of everything that MLflow has received when the study is over."""
        sent = [(trial.state, trial.present, trial.reports) for trial in self.ledger.trials]
        return hashlib.sha256(repr(sent).encode()).hexdigest()

    def _state(self) -> dict[str, Any]:
        """Return the content of study.json; create it for a new study.

        Its key identifies the study in MLflow before the study has a run there.
        """
        known = RunFolder(self.store).read_json(STUDY, *_STATE_KEYS)
        if known is None:
            known = {"key": uuid.uuid4().hex, "run_id": "", "digest": self._digest, "delivered": ""}
            self._remember(known)
        return known

    def _remember(self, state: dict[str, Any]) -> None:
        content = {**state, "space": self.plan.space.model_dump(mode="json")}
        RunFolder(self.store).write_json(STUDY, content)

    def _check_same(self) -> None:
        state = RunFolder(self.store).read_json(STUDY, *_STATE_KEYS)
        if state and state["digest"] != self._digest:
            raise UserError(
                f"study {self.plan.space.name} in {self.store.description} began with another space or recipe: "
                "restore the original, copy the space under another name, or delete that folder"
            )


def concurrent(placement: Placement) -> int:
    """Return how many trials fit the cluster at once; each needs CPUs and GPUs for workers and a CPU for data tasks."""
    workers, _ = placement.workers
    fits = cluster_total("CPU") // (workers * placement.cpus + 1)
    return max(1, min(fits, cluster_total("GPU") // workers) if placement.gpu else fits)


def data_cpus(placement: Placement, at_once: int) -> float:
    """Return the number of CPUs for a trial's data tasks: an equal share of those that no worker holds."""
    left = cluster_total("CPU") - at_once * placement.workers[0] * placement.cpus
    return max(1.0, left // at_once)


def _place(at_once: int) -> dict[str, float]:
    """Return the resources of a trial's own process: one of `at_once` slots on this node.

    The process needs no CPU: it waits while its workers train, and they request their CPUs themselves.
    """
    import ray

    return {f"node:{ray.util.get_node_ip_address()}": int(10_000 / at_once) / 10_000}  # Ray keeps four decimals


def _trainable(job: TrialJob) -> Callable[[dict[str, Any]], None]:
    def trial(config: dict[str, Any]) -> None:
        from pipelines.tuning.schedulers import NUMBER
        from pipelines.tuning.trial import run_trial

        run_trial(job, config[NUMBER])

    return trial


WINNER = "winner.toml"


def finalize(study: Study, winner: Trial, run_id: str) -> None:
    """Write the winner's recipe file and train it, in an MLflow run below the study's.

    The file is a recipe for `train.py`, without anything of the study. A finished run is not trained again.

    Raises:
        UserError: the winner's settings changed during training, which a recipe cannot express.
    """
    space = study.plan.space
    if winner.changes:
        folder = shown(f"{study.plan.base.run.home}/{run_name(space.name, winner)}")
        raise UserError(
            f"trial {winner.number:03d} of study {space.name} changed settings {len(winner.changes)} times, which "
            f"a recipe cannot express: register its weights with `{command('register', folder, '--name', space.name)}`"
        )
    recipe = study.plan.final(winner.values)
    study.store.write(WINNER, recipe.to_toml().encode())
    study.console.print(f"winner      trial {winner.number:03d}: {shown(f'{study.store.description}/{WINNER}')}")
    outcome = train(recipe, study.console, parent_run_id=run_id)
    study.console.print(f"final       trained with its own seed; the trial had {winner.accuracy:.2%} in the study")
    summarise(study.console, recipe, outcome)
