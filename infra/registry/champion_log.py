"""The log of a registered model's champions. It decides which of several concurrent processes moves the alias next.

MLflow has no conditional write of an alias, but it has one of a run's parameter: MLflow refuses another value for an
existing key. So each registered model has a run, in a separate experiment, whose parameters are the numbered moves of
the model's alias. To move the alias, a process writes the entry after the last one that it saw. Of several writers one
succeeds, and the others must read the log again. A second parameter is written after the alias was set. It
distinguishes a finished move from one whose process was killed in between. Any process may finish such a move.

The registered model's tag `champion_log` names the run; model and tag are created in one transaction. People see that
run in MLflow and may delete it. Until `mlflow gc` the run can be restored, and until then nothing moves the alias.
After `mlflow gc` a new log starts from the current alias.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from infra.errors import UserError
from infra.tracking.address import redact
from infra.tracking.client import Tracking
from infra.tracking.run import RunInfo, open_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import RegisteredModel

LOG_TAG = "champion_log"
EXPERIMENT = "registry log (internal)"
"""Experiment of new logs. Older logs, in the experiment `champions`, are found by their model's tag and stay there."""
_NOTE = (
    "Internal to resnet-ray, nothing to look at: each run here is the log of a registered model's champions. "
    "`python pipelines/register.py --history NAME` shows it. Without its log a champion cannot change: keep these runs."
)

_ATTEMPTS = 5
_KEY = r"\d{6}"

Why = Literal["gate", "by hand", "rollback"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One entry of the log: the alias moves to a version."""

    number: int  # 1 is the first
    version: int  # that the alias moves to
    over: int | None  # that the alias moves from
    why: Why
    time: str  # ISO 8601, UTC
    done: bool  # whether the alias has been set


class ChampionLog:
    """The log of one registered model."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    def moves(self) -> list[Move]:
        """Return all entries, in order."""
        params = self._client.get_run(self.run_id).data.params
        return [
            Move(number=int(key), done=_done(int(key)) in params, **_shown(value))
            for key, value in sorted(params.items())
            if re.fullmatch(_KEY, key)
        ]

    def append(self, number: int, *, version: int, over: int | None, why: Why) -> bool:
        """Write entry `number`, one after the last; return False if another process has written it.

        Raises:
            UserError: the log's run was deleted meanwhile.
        """
        from mlflow.exceptions import MlflowException

        entry = {"version": version, "over": over, "why": why, "time": now(), "by": uuid.uuid4().hex}
        try:
            self._client.log_param(self.run_id, _key(number), json.dumps(entry))
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            run = _run_of(self._client, self.run_id)
            if run is None or _key(number) not in run.data.params:  # refused for another reason than a lost race
                raise
            return False
        return True

    def finish(self, move: Move) -> None:
        """Record that the alias was set to the version of the move."""
        self._client.log_param(self.run_id, _done(move.number), "yes")


def log_of(client: MlflowClient, tracking: Tracking, name: str) -> ChampionLog:
    """Return the log of a registered model; create the model if there is none.

    A model has no log if another program created it, or if the log was deleted for good. Such a model gets a new log,
    which does not know the earlier moves of the alias.

    Raises:
        UserError: the log's run was deleted and can be restored, or a prompt in MLflow has this name.
    """
    from mlflow.exceptions import MlflowException

    for _ in range(_ATTEMPTS):
        model = _find(client, name)
        if model is not None and (run_id := _kept(client, model)):
            return ChampionLog(client, run_id)
        run_id = open_run(client, tracking, _log_info(name))
        client.set_terminated(run_id)
        try:
            if model is None:
                client.create_registered_model(name, tags={LOG_TAG: run_id})
            else:
                client.set_registered_model_tag(name, LOG_TAG, run_id)
            return ChampionLog(client, run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            client.delete_run(run_id)
            if "prompt" in str(error):
                raise UserError(f"{name!r} is the name of a prompt in MLflow: register under another name") from error
    raise UserError(f"MLflow at {tracking.description} says that the model {name!r} exists, and does not show it")


def check_log(client: MlflowClient, name: str) -> None:
    """Fail before anything is written if the log of a model's champions was deleted.

    Raises:
        UserError: the log's run was deleted and can be restored.
    """
    model = _find(client, name)
    if model is not None:
        _kept(client, model)


def _log_info(name: str) -> RunInfo:
    return RunInfo(experiment=EXPERIMENT, experiment_note=_NOTE, name=f"log of {name}")


def _kept(client: MlflowClient, model: RegisteredModel) -> str | None:
    """Return the run id of a model's log; None without a log, or if it was deleted for good."""
    run_id = model.tags.get(LOG_TAG)
    run = _run_of(client, run_id) if run_id else None
    if run is None or run.info.lifecycle_stage == "active":
        return run_id if run else None
    restore = f"mlflow runs restore --run-id {run_id}"
    experiment = client.get_experiment(run.info.experiment_id)
    if experiment.lifecycle_stage != "active":
        restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
    raise UserError(
        f"the MLflow run {run_id} (log of champions of {model.name!r}) was deleted: `{restore}`, and run the same "
        f"command again; MLflow's command needs MLFLOW_TRACKING_URI={redact(client.tracking_uri)}"
    )


def _run_of(client: MlflowClient, run_id: str) -> Run | None:
    """Return the run, deleted or not; None if MLflow does not know the run."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _find(client: MlflowClient, name: str) -> RegisteredModel | None:
    found = client.search_registered_models(f"name = '{name}'")
    return found[0] if found else None


def _key(number: int) -> str:
    return f"{number:06d}"


def _done(number: int) -> str:
    return f"{_key(number)}.done"


def _shown(entry: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(entry).items() if key != "by"}
