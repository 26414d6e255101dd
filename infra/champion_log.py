"""The log of a registered model's champions: who moves the alias next is decided here, once, whoever asks meanwhile.

MLflow has no conditional write of an alias, but it has one of a run's parameter: another value for a key that is set is
refused. So each registered model has a run in the experiment `champions` whose parameters are the moves of its alias,
numbered. To move it is to write the entry after the last that was seen; of several writers one succeeds, and the others
have to look again. A second parameter, written when the alias stands where the entry says, tells a finished move from
one whose process was killed in between, which anybody may finish.

The registered model's tag `champion_log` names the run; it comes into being with the model, in one transaction.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from infra.mlflow_client import Tracking
from infra.mlflow_run import RunInfo, open_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

LOG_TAG = "champion_log"
EXPERIMENT = "champions"

Why = Literal["gate", "by hand", "rollback"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One entry: the alias goes to a version."""

    number: int  # 1 is the first
    version: int  # that the alias goes to
    over: int | None  # that it came from
    why: Why
    time: str  # ISO 8601, UTC
    done: bool  # whether the alias has been set


class ChampionLog:
    """The log of one registered model."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    def moves(self) -> list[Move]:
        """All entries, in order."""
        params = self._client.get_run(self.run_id).data.params
        return [
            Move(number=int(key), done=_done(int(key)) in params, **_shown(value))
            for key, value in sorted(params.items())
            if re.fullmatch(r"\d+", key)
        ]

    def append(self, number: int, *, version: int, over: int | None, why: Why) -> bool:
        """Write entry `number`, one after the last; False where somebody else has."""
        from mlflow.exceptions import MlflowException

        entry = {"version": version, "over": over, "why": why, "time": now(), "by": uuid.uuid4().hex}
        try:
            self._client.log_param(self.run_id, _key(number), json.dumps(entry))
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            return False
        return True

    def finish(self, move: Move) -> None:
        """Say that the alias stands where the move says."""
        self._client.log_param(self.run_id, _done(move.number), "yes")


def log_of(client: MlflowClient, tracking: Tracking, name: str) -> ChampionLog:
    """The log of a registered model; the model is created if there is none.

    A model that somebody else created has no log: it gets one, and until then its alias is all there is to know.
    """
    from mlflow.exceptions import MlflowException

    model = _find(client, name)
    if model is not None and LOG_TAG in model.tags:
        return ChampionLog(client, model.tags[LOG_TAG])
    run_id = open_run(client, tracking, RunInfo(experiment=EXPERIMENT, name=name))
    client.set_terminated(run_id)
    try:
        if model is None:
            client.create_registered_model(name, tags={LOG_TAG: run_id})
        else:
            client.set_registered_model_tag(name, LOG_TAG, run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        client.delete_run(run_id)  # somebody else was first
        return log_of(client, tracking, name)
    return ChampionLog(client, run_id)


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
