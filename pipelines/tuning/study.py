"""The life of a study: find the data and what is known, run Tune over what is missing, tell MLflow.

Whatever a later command needs to go on is in the ledger and in the runs' folders. Tune's own files lie in a temporary
folder, and are read by nobody.
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
from infra.capacity import most_of
from infra.errors import UserError
from infra.interruption import asking, explained
from infra.storage import open_store
from infra.tracking import RunInfo, Tracker, resolve_tracking
from pipelines import cli
from pipelines.checkpoint import RunFolder
from pipelines.driver import find_data
from pipelines.outcome import DELIVERY_PATIENCE_S
from pipelines.paths import shown
from pipelines.placement import Placement, place
from pipelines.tuning.children import Children
from pipelines.tuning.ledger import STUDY, Ledger
from pipelines.tuning.plan import Plan
from pipelines.tuning.report import publish, write_report

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
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # which ends the trials and commits nothing: `stopping.py` instead
}
# Tune copies these into its actors' runtime_env, which Ray shows in logs and dashboard; where trials run, they are set.
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
_RESTARTS = 2  # of a trial's own process; its workers have run.max_failures


class Study:
    """A study under way."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self.plan, self.console = plan, console
        home = open_store(plan.base.run.home)
        home.check_access(write=True)
        self.store = home.sub(f"studies/{plan.space.name}")
        self.ledger = Ledger(self.store)
        self._check_same()

    @property
    def over(self) -> bool:
        return len(self.ledger) == self.plan.space.trials and not self.ledger.interrupted

    def run(self) -> str:
        """Bring the study to its end, from wherever it stands; returns the id of its MLflow run.

        Raises:
            UserError: whatever the user can put right; everything reported so far is kept.
        """
        state = self._state()
        if self.over and state["delivered"] == self._delivery:
            self.console.print(f"study {self.plan.space.name} is finished: nothing to do{self._failures()}")
            return str(state["run_id"])
        infra.cluster.connect(min_cpus=1)
        placement = place(self.plan.base.run)
        placement.check()
        self.console.print(placement.line)
        manifest = find_data(self.plan.base, open_store(self.plan.base.data.uri), self.console)
        samples = manifest.splits[self.plan.base.data.train_split]
        tracker = self._start_tracker(state)
        with explained(self._kept), tracker.finished_after(DELIVERY_PATIENCE_S):
            if not self.over:
                self._tune(tracker, samples, placement)
            write_report(self.plan, self.ledger, self.store)
            publish(self.plan, self.ledger, self.store, tracker)
        self._remember({**state, "run_id": tracker.run_id, "delivered": self._delivery})
        return tracker.run_id

    def _failures(self) -> str:
        """Say how many trials failed, why the first did, and what tries them again; "" if none failed."""
        failed = self.ledger.failed
        if not failed:
            return ""
        first = f"trial {failed[0].number:03d}: {failed[0].reason}"
        return f". {len(failed)} of {len(self.ledger)} trials failed ({first}): --retry-failed tries them again"

    def _kept(self) -> str:
        """The line after a Ctrl-C."""
        over = len(self.ledger) - len(self.ledger.interrupted)
        return f"interrupted, {over} of {self.plan.space.trials} trials are over: the same command resumes"

    def _tune(self, tracker: Tracker, samples: int, placement: Placement) -> None:
        from ray import tune
        from ray.tune.execution import class_cache

        from pipelines.tuning.groups import GroupKeeper
        from pipelines.tuning.journal import SYNCHRONOUS, Journal
        from pipelines.tuning.progress import Progress
        from pipelines.tuning.search import PlannedTrials
        from pipelines.tuning.stopping import Stops, stop_study
        from pipelines.tuning.trial import TrialJob

        space = self.plan.space
        at_once = space.budget.concurrent or concurrent(placement)
        waiting = space.trials if space.scheduler.name in SYNCHRONOUS else 1  # all of a population, or the next one
        class_cache.ENV_VARS_TO_PROPAGATE.difference_update(_SECRETS)
        os.environ.update({**_QUIET, "TUNE_MAX_PENDING_TRIALS_PG": str(waiting)})
        job = TrialJob(
            plan=self.plan,
            study_uri=self.store.uri,
            parent_run_id=tracker.run_id,
            samples_per_epoch=samples,
            repeats=space.scheduler.name in SYNCHRONOUS,
            data_cpus=data_cpus(placement, at_once),
            keeper=GroupKeeper.remote(),  # type: ignore[attr-defined]  # Ray adds it
            stops=Stops.remote(),  # type: ignore[attr-defined]
        )
        self.console.print(f"{space.trials} trials, {at_once} at once: {shown(self.store.description)}")
        with Children(self.plan, self.ledger, self.console) as children, tempfile.TemporaryDirectory() as scratch:
            journal = Journal(self.plan, self.ledger, children.close)
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
                    callbacks=[Progress(self.ledger, self.plan, self.console, journal)],
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
                raise KeyboardInterrupt  # Tune takes a stop for an end like any other

    def _start_tracker(self, state: dict[str, Any]) -> Tracker:
        """The study's own run in MLflow, above those of its trials."""
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
        """Of what decides the trials."""
        asked = {"space": self.plan.space.model_dump(mode="json", exclude={"final", "title"})}
        asked["recipe"] = self.plan.base.trajectory()
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @property
    def _delivery(self) -> str:
        """Of everything that MLflow has been told when the study is over."""
        told = [(trial.state, trial.present, trial.reports) for trial in self.ledger.trials]
        return hashlib.sha256(repr(told).encode()).hexdigest()

    def _state(self) -> dict[str, Any]:
        """What study.json holds; a study that begins has a key, by which MLflow knows it before it has a run."""
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
                f"study {self.plan.space.name} in {self.store.description} began with another space or recipe: go back "
                "to it, copy the space under another name, or delete that folder"
            )


def concurrent(placement: Placement) -> int:
    """Return how many trials the cluster has CPUs and GPUs for: each needs its workers and a CPU for its data tasks."""
    workers, _ = placement.workers
    fits = most_of("CPU") // (workers * placement.cpus + 1)
    return max(1, min(fits, most_of("GPU") // workers) if placement.gpu else fits)


def data_cpus(placement: Placement, at_once: int) -> float:
    """Return a trial's share of the CPUs that the workers of all trials leave."""
    left = most_of("CPU") - at_once * placement.workers[0] * placement.cpus
    return max(1.0, left // at_once)


def _place(at_once: int) -> dict[str, float]:
    """What a trial's own process holds: a place beside this command, of which there are `at_once`.

    It waits while its workers train, which ask for their CPUs themselves.
    """
    import ray

    return {f"node:{ray.util.get_node_ip_address()}": int(10_000 / at_once) / 10_000}  # Ray knows four decimals


def _trainable(job: TrialJob) -> Callable[[dict[str, Any]], None]:
    def trial(config: dict[str, Any]) -> None:
        from pipelines.tuning.schedulers import NUMBER
        from pipelines.tuning.trial import run_trial

        run_trial(job, config[NUMBER])

    return trial
