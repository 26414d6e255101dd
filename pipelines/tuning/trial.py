"""Trial of a study, in a separate process that waits while Ray Train's workers train.

A trial begins at the newest checkpoint of its run folder, else at step 0. If a population made it continue from
another trial, it begins at that trial's checkpoint. It reports every evaluation that its checkpoint's history has and
the ledger lacks. Its curve therefore has no gap, no matter which process was killed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from infra.errors import UserError
from infra.storage import open_store
from pipelines.checkpoint import RECORDS, RunFolder
from pipelines.config.recipe import Recipe
from pipelines.training.driver import train
from pipelines.training.trial_reporting import Reporting, numbered
from pipelines.tuning.placement_groups import HoldGroup
from pipelines.tuning.trial_recipes import StudyPlan
from pipelines.tuning.trials import FAILED, Change, Trial, run_name, trial_file
from resnet_core.plateau import held_out

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from infra.tracking.metric_point import MetricPoint


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialJob:
    """Input that is the same for all trials of a study."""

    plan: StudyPlan
    study_uri: str
    parent_run_id: str
    samples_per_epoch: int
    repeats: bool  # the scheduler needs all reports again
    data_cpus: float  # per trial
    keeper: ActorHandle[Any]  # actor `GroupKeeper`
    stops: ActorHandle[Any]  # actor `Stops`


def run_trial(job: TrialJob, number: int) -> None:
    """Train a trial from its last checkpoint to its end and report to Tune; runs in one of Tune's processes."""
    import ray
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    _work_in(job.plan.here.disk)
    trial = Trial.from_json(json.loads(open_store(job.study_uri).read(trial_file(number))))
    if job.repeats:
        for report in trial.reports:
            tune.report({key: getattr(report, key) for key in ("report", "step", "accuracy", "loss")})
    if trial.over:
        return
    study = job.plan.space.name
    recipe = job.plan.named(trial.present, run_name(study, trial))
    folder = RunFolder(open_store(recipe.run.home).sub(recipe.run_name))
    reporting = Reporting(
        once=f"{job.parent_run_id}/{number:03d}",
        tags={"study": study, "trial": f"{number:03d}", **_tags(trial.present)},
        callbacks=(TuneReportCallback(), HoldGroup(job.keeper)),
        data_cpus=job.data_cpus,
        enter=lambda queue: bool(ray.get(job.stops.enter.remote(number, queue))),
    )
    try:
        if trial.changes and not folder.steps():
            _fork(job, trial.changes[-1], recipe, folder)
        _report_missed(job, trial, recipe, folder)
        train(recipe, Console(quiet=True), job.parent_run_id, reporting)
    except UserError as error:
        tune.report({FAILED: str(error), "accuracy": 0.0})
        return
    except KeyboardInterrupt:  # the study is stopped; the next command resumes this trial
        pass
    finally:
        job.stops.leave.remote(number)
    _report_missed(job, trial, recipe, folder)


def _work_in(folder: str) -> None:
    """Change to the command's folder: Tune starts each trial in another folder, where relative paths find nothing."""
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)


def _tags(values: Mapping[str, Any]) -> dict[str, str]:
    """Return values as MLflow tags, which, unlike parameters, a population may change."""
    return {f"value.{key}": str(value) for key, value in values.items()}


def _report_missed(job: TrialJob, trial: Trial, recipe: Recipe, folder: RunFolder) -> None:
    """Report the run's evaluations that the ledger lacks because a process was killed before it recorded them."""
    from ray import tune

    newest = folder.newest(lambda _: None, only=(RECORDS,))
    for record in newest.records if newest else ():
        if held_out(record.metrics, "accuracy") is not None:
            report = _report(job, recipe, record)
            if report["report"] > trial.last:
                tune.report(report)


def _report(job: TrialJob, recipe: Recipe, record: MetricPoint) -> dict[str, float]:
    metrics = {name: held_out(record.metrics, name) or 0.0 for name in ("accuracy", "loss")}
    return numbered(recipe.evaluation_steps(job.samples_per_epoch), record.step, metrics)


def _fork(job: TrialJob, change: Change, recipe: Recipe, folder: RunFolder) -> None:
    """Write the donor's checkpoint as the first one of `folder`, with this trial's recipe.

    Weights, optimizer, ledger and history are the donor's.

    Raises:
        UserError: the donor's checkpoint is gone.
    """
    home = open_store(recipe.run.home)
    donors = [RunFolder(home.sub(name)) for name in _donor_runs(job, change)]
    donor = next((each for each in donors if change.step in each.steps()), None)
    if donor is None:
        raise UserError(f"trial {change.donor:03d} has no checkpoint of step {change.step} to continue from")
    checkpoint = donor.load(change.step)
    flat = {**recipe.flat(), **{key: checkpoint.recipe[key] for key in ("model.num_classes", "compute.precision")}}
    own = {"recipe.toml": recipe.to_toml().encode()}
    folder.write(
        dataclasses.replace(checkpoint, recipe=flat, files={**checkpoint.files, **own}), keep_best=recipe.run.keep_best
    )


def _donor_runs(job: TrialJob, change: Change) -> list[str]:
    """Return the names of the donor's runs, latest first; they include its run at the time of the change."""
    donor = Trial.from_json(json.loads(open_store(job.study_uri).read(trial_file(change.donor))))
    at_the_time = [each for each in donor.changes if each.report < change.report]
    return [
        run_name(job.plan.space.name, dataclasses.replace(donor, changes=at_the_time[:count]))
        for count in range(len(at_the_time), -1, -1)
    ]
