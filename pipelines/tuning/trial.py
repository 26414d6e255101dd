"""What a trial does, in a process of its own that waits while Ray Train's workers train.

Where it begins is read from the ledger: at the start, at the newest checkpoint of its run folder, or, where a
population had it change places, at another trial's checkpoint. It reports every evaluation that its checkpoint's
history has and the ledger lacks, so that a curve has no gap, whatever was killed when.
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
from pipelines.checkpoint import RunFolder
from pipelines.recipe import Recipe
from pipelines.reporting import Reporting, numbered
from pipelines.tuning.journal import FAILED
from pipelines.tuning.ledger import Change, Trial, run_name, trial_file
from pipelines.tuning.plan import Plan
from resnet_core.reaction import held_out

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from infra.records import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialJob:
    """What every trial of a study is told."""

    plan: Plan
    study_uri: str
    parent_run_id: str
    samples_per_epoch: int
    repeats: bool  # the scheduler is told everything anew
    data_cpus: float  # a trial's share
    keeper: ActorHandle[Any]  # of placement groups
    stops: ActorHandle[Any]  # of the study


def run_trial(job: TrialJob, number: int) -> None:
    """Bring a trial to its end, from wherever it stands; reports go to Tune, whose process this is."""
    import ray
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    from pipelines.driver import train
    from pipelines.tuning.groups import HoldGroup, instead_of_trains

    _enter(job.plan.here.disk)
    trial = Trial.from_json(json.loads(open_store(job.study_uri).read(trial_file(number))))
    if job.repeats:
        for report in trial.reports:
            tune.report({key: getattr(report, key) for key in ("report", "step", "accuracy", "loss")})
    if trial.over:
        return
    instead_of_trains()
    study = job.plan.space.name
    recipe = job.plan.named(trial.present, run_name(study, trial))
    folder = RunFolder(open_store(recipe.run.home).sub(recipe.run_name))
    reporting = Reporting(
        once=f"{job.parent_run_id}/{number:03d}",
        tags={"study": study, "trial": f"{number:03d}", **_told(trial.present)},
        callbacks=(TuneReportCallback(), HoldGroup(job.keeper)),
        data_cpus=job.data_cpus,
        enter=lambda mailbox: bool(ray.get(job.stops.enter.remote(number, mailbox))),
    )
    try:
        if trial.changes and not folder.steps():
            _fork(job, trial.changes[-1], recipe, folder)
        _report_missed(job, trial, recipe, folder)
        train(recipe, Console(quiet=True), job.parent_run_id, reporting)
    except UserError as error:
        tune.report({FAILED: str(error), "accuracy": 0.0})
        return
    except KeyboardInterrupt:  # the study is stopped; this trial goes on with the next command
        pass
    finally:
        job.stops.leave.remote(number)
    _report_missed(job, trial, recipe, folder)


def _enter(folder: str) -> None:
    """Work where the command does: Tune gives each trial a folder of its own, in which relative paths lead nowhere."""
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)


def _told(values: Mapping[str, Any]) -> dict[str, str]:
    """As tags, which a population may change."""
    return {f"value.{key}": str(value) for key, value in values.items()}


def _report_missed(job: TrialJob, trial: Trial, recipe: Recipe, folder: RunFolder) -> None:
    """What the run has measured and the ledger does not know, as it was written down: whoever wrote it was killed."""
    from ray import tune

    newest = folder.newest(lambda _: None)
    for record in newest.records if newest else ():
        if held_out(record.metrics, "accuracy") is not None:
            report = _report(job, recipe, record)
            if report["report"] > trial.last:
                tune.report(report)


def _report(job: TrialJob, recipe: Recipe, record: Record) -> dict[str, float]:
    metrics = {name: held_out(record.metrics, name) or 0.0 for name in ("accuracy", "loss")}
    return numbered(recipe.evaluation_steps(job.samples_per_epoch), record.step, metrics)


def _fork(job: TrialJob, change: Change, recipe: Recipe, folder: RunFolder) -> None:
    """The donor's checkpoint as the first one of `folder`: weights, optimizer, ledger and history, under our recipe."""
    home = open_store(recipe.run.home)
    donors = [RunFolder(home.sub(name)) for name in _donor_runs(job, change)]
    donor = next((each for each in donors if change.step in each.steps()), None)
    if donor is None:
        raise UserError(f"trial {change.donor:03d} has no checkpoint of step {change.step} to go on from")
    checkpoint = donor.load(change.step)
    flat = {**recipe.flat(), **{key: checkpoint.recipe[key] for key in ("model.num_classes", "compute.precision")}}
    own = {"recipe.toml": recipe.to_toml().encode()}
    folder.write(
        dataclasses.replace(checkpoint, recipe=flat, files={**checkpoint.files, **own}), keep_best=recipe.run.keep_best
    )


def _donor_runs(job: TrialJob, change: Change) -> list[str]:
    """The donor's runs, the latest first: the one at the time of the change is among them."""
    donor = Trial.from_json(json.loads(open_store(job.study_uri).read(trial_file(change.donor))))
    at_the_time = [each for each in donor.changes if each.report < change.report]
    return [
        run_name(job.plan.space.name, dataclasses.replace(donor, changes=at_the_time[:count]))
        for count in range(len(at_the_time), -1, -1)
    ]
