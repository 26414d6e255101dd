"""A run in MLflow: create and describe it, or resume the run of an earlier process."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from infra.errors import UserError
from infra.tracking.curves import CurveNames

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from infra.tracking.client import Tracking

NOTE = "mlflow.note.content"
"""Tag of a run, and of an experiment, that MLflow shows as its description (Markdown)."""
_MODEL_TRAINING = ("mlflow.experimentKind", "custom_model_development")  # so that MLflow does not guess
_ONCE = "once"
_MAX_PARAMS_PER_BATCH = 100  # these three are MLflow's own limits
_MAX_PARAM_CHARS = 6000
_MAX_KEY_CHARS = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """Name and description of a run."""

    experiment: str
    experiment_note: str = ""  # description of the experiment if this run creates it
    name: str
    run_id: str | None = None  # the run to resume; None creates one
    once: str = ""  # unique name in the experiment: without run_id, resumes the run created under it
    params: Mapping[str, object] = field(default_factory=dict)  # flat: dotted key -> value
    tags: Mapping[str, str] = field(default_factory=dict)
    curves: CurveNames = field(default_factory=CurveNames)  # names of the metrics in MLflow


def open_run(client: MlflowClient, tracking: Tracking, info: RunInfo) -> str:
    """Return the id of a new run, or resume ``info.run_id``; existing parameters keep their values.

    Raises:
        UserError: the run is unknown, or the run or its experiment was deleted.
    """
    tags = {**_origin(), **info.tags}
    if info.run_id is None:
        run = _create(client, _experiment(client, tracking, info), info, tags)
    else:
        run = _revive(client, tracking, info.run_id)
    missing = {key: value for key, value in info.params.items() if key[:_MAX_KEY_CHARS] not in run.data.params}
    _describe(client, run.info.run_id, missing, tags)
    return str(run.info.run_id)


def _create(client: MlflowClient, experiment_id: str, info: RunInfo, tags: Mapping[str, str]) -> Run:
    """Create a run, or return the one that a process created before it was killed without noting the id."""
    if not info.once:
        return client.create_run(experiment_id, run_name=info.name, tags=dict(tags))
    found = client.search_runs([experiment_id], f"tags.{_ONCE} = '{info.once}'", max_results=1)
    once = {**tags, _ONCE: info.once}
    return found[0] if found else client.create_run(experiment_id, run_name=info.name, tags=once)


def _experiment(client: MlflowClient, tracking: Tracking, info: RunInfo) -> str:
    """Return the id of the experiment; create it if necessary, even if another process does so at the same time."""
    from mlflow.exceptions import MlflowException

    name, tags = info.experiment, dict([_MODEL_TRAINING])
    found = client.get_experiment_by_name(name)
    if found is None:
        if info.experiment_note:
            tags[NOTE] = info.experiment_note
        try:
            return str(client.create_experiment(name, artifact_location=tracking.artifact_location, tags=tags))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise error
    if found.lifecycle_stage != "active":
        restore = _mlflow(tracking, f"experiments restore --experiment-id {found.experiment_id}")
        raise UserError(f"the MLflow experiment {name!r} was deleted: `{restore}`, or choose another name")
    if _MODEL_TRAINING[0] not in found.tags:  # of an earlier version of this project, or made by hand
        client.set_experiment_tag(found.experiment_id, *_MODEL_TRAINING)
    return str(found.experiment_id)


def _revive(client: MlflowClient, tracking: Tracking, run_id: str) -> Run:
    """Return the run of an earlier process, and set its status to running."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        hint = "correct MLFLOW_TRACKING_URI, or train under another run name"
        raise UserError(
            f"MLflow at {tracking.description} has no run {run_id}, which this job began: {hint}"
        ) from error
    if run.info.lifecycle_stage != "active":
        restore = _mlflow(tracking, f"runs restore --run-id {run_id}")
        raise UserError(f"the MLflow run {run_id} was deleted: `{restore}`")
    client.update_run(run_id, status="RUNNING")
    return run


def _mlflow(tracking: Tracking, arguments: str) -> str:
    """Return a command of MLflow that reaches this deployment, also if the environment does not name it."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return f"mlflow {arguments}"
    return f"env MLFLOW_TRACKING_URI={shlex.quote(tracking.uri)} mlflow {arguments}"


def _describe(client: MlflowClient, run_id: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
    cut = (Param(key[:_MAX_KEY_CHARS], str(value)[:_MAX_PARAM_CHARS]) for key, value in params.items())
    while batch := list(islice(cut, _MAX_PARAMS_PER_BATCH)):
        client.log_batch(run_id, params=batch)


def _origin() -> dict[str, str]:
    """Return tags with the user and the program for MLflow's pages; the tags are optional, so this must not fail."""
    return {"mlflow.user": _user(), "mlflow.source.name": sys.argv[0] or "python", "mlflow.source.type": "LOCAL"}


def _user() -> str:
    """Return the user's name, or the number if the system has no name, as in a container run with --user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return str(os.getuid())
