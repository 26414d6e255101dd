"""A run in MLflow: created and described, or taken up where an earlier process left it."""

from __future__ import annotations

import getpass
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from infra.curves import Curves
from infra.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from infra.mlflow_client import Tracking

NOTE = "mlflow.note.content"
"""Tag of a run, and of an experiment, that MLflow shows as its description (Markdown)."""
_MODEL_TRAINING = ("mlflow.experimentKind", "custom_model_development")  # so that MLflow need not guess
_ONCE = "once"
_MAX_PARAMS_PER_BATCH = 100  # these three are MLflow's own limits
_MAX_PARAM_CHARS = 6000
_MAX_KEY_CHARS = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """What a run is called and described by."""

    experiment: str
    experiment_note: str = ""  # its description in MLflow, where it is created
    name: str
    run_id: str | None = None  # the run to go on with; None creates one
    once: str = ""  # names the run in its experiment: without a run_id, one that was created under it is gone on with
    params: Mapping[str, object] = field(default_factory=dict)  # flat: dotted key -> value
    tags: Mapping[str, str] = field(default_factory=dict)
    curves: Curves = field(default_factory=Curves)  # how its records are shown


def open_run(client: MlflowClient, tracking: Tracking, info: RunInfo) -> str:
    """The id of a new run, or of ``info.run_id``, running again; parameters that it has keep their values.

    Raises:
        UserError: the run is not known or was deleted, or its experiment was.
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
    """A new run, unless whoever asked for it before was killed before it could note the id."""
    if not info.once:
        return client.create_run(experiment_id, run_name=info.name, tags=dict(tags))
    found = client.search_runs([experiment_id], f"tags.{_ONCE} = '{info.once}'", max_results=1)
    once = {**tags, _ONCE: info.once}
    return found[0] if found else client.create_run(experiment_id, run_name=info.name, tags=once)


def _experiment(client: MlflowClient, tracking: Tracking, info: RunInfo) -> str:
    """The experiment's id, created if need be, also by somebody else at the same moment."""
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
    if _MODEL_TRAINING[0] not in found.tags:  # of an earlier version of ours, or made by hand
        client.set_experiment_tag(found.experiment_id, *_MODEL_TRAINING)
    return str(found.experiment_id)


def _revive(client: MlflowClient, tracking: Tracking, run_id: str) -> Run:
    """The run of an earlier process, running again."""
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
    """The command of MLflow's own, which looks elsewhere unless the environment names the place."""
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
    """Who runs what, as MLflow shows it. Nothing in it may fail: it decorates."""
    return {"mlflow.user": _user(), "mlflow.source.name": sys.argv[0] or "python", "mlflow.source.type": "LOCAL"}


def _user() -> str:
    """The name of the user, or the number where the system has no name for it, as in a container run with --user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return str(os.getuid())
