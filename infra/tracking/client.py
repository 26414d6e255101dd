"""The MLflow deployment, and a client that logs little, refuses pickles, and fails in one line within seconds."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from infra.errors import UserError
from infra.retry import pauses
from infra.tracking.address import check_address, is_server, reach, reason, redact, remove_stray_folder, sqlite_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_RETRY_FOR_S = 60.0
_LOCAL_UI = "http://127.0.0.1:5000"  # of `make ui`
_GAVE_UP = "Giving up after"  # MLflow's error when concurrent writers took every version number that it tried
_SAME_ALIAS = "registered_model_alias"  # table of a row that two writers inserted at once: one of them then updates it
# Packages whose exceptions MLflow raises or passes on; they share no base class.
_BELOW = frozenset({"mlflow", "requests", "urllib3", "sqlalchemy", "alembic", "botocore", "boto3"})
# Database errors for which a retry does not help -> what helps. MLflow calls every operational error temporary.
_LASTING = {
    "disk is full": "free some space there, and run the same command again",
    "readonly database": "make it writable, or set MLFLOW_TRACKING_URI to another place",
}
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Callers retry, because they know whether a user waits: MLflow itself would retry for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """An MLflow deployment: tracking and model registry at one URI."""

    uri: str  # http(s)://…, or a database such as sqlite:////home/me/resnet-ray/mlflow.db
    artifact_location: str | None = None  # where new experiments keep artifacts; None leaves it to the server

    @property
    def is_server(self) -> bool:
        return is_server(self.uri)

    def run_url(self, experiment_id: str, run_id: str) -> str:
        """Return the URL of a run's page, on the server or, for a database, on the one that `make ui` starts.

        Without the URL's last part, MLflow shows the run among its pages for language models.
        """
        base = self.description.rstrip("/") if self.is_server else _LOCAL_UI
        return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"

    @property
    def description(self) -> str:
        """The URI for messages, without credentials."""
        return redact(self.uri)


def resolve_tracking(home: str | Path) -> Tracking:
    """Return the deployment at MLFLOW_TRACKING_URI if set, else a SQLite database in the folder ``home``.

    A server decides itself where artifacts go. Without a server they go to MLFLOW_DEFAULT_ARTIFACT_ROOT (such as an
    ``s3://`` URI) if set, else to ``home/mlartifacts``.
    """
    home = Path(home).absolute()
    tracking = Tracking(uri=os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(home / "mlflow.db"))
    if tracking.is_server:
        return tracking
    artifacts = os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT") or (home / "mlartifacts").as_uri()
    return Tracking(uri=tracking.uri, artifact_location=artifacts)


def prepare_environment() -> None:
    """Make MLflow in this process load no pickles, send no telemetry and log little; call this before its import."""
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def connect(tracking: Tracking) -> MlflowClient:
    """Return a client after MLflow has answered one request.

    Raises:
        UserError: the address is invalid, no server answers, or the database cannot be opened; within seconds.
    """
    check_address(tracking.uri)
    prepare_environment()
    reach(tracking.uri)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # they log every schema migration at the first use of a database
        logging.getLogger(name).setLevel(logging.WARNING)
    # This logger writes the traceback of every database error that MLflow then raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

    def answered() -> MlflowClient:
        client = MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri)
        client.search_experiments(max_results=1)
        remove_stray_folder(tracking.uri)
        return client

    with one_line_errors(tracking):
        return answered() if tracking.is_server else _repeated(answered)()


@contextmanager
def one_line_errors(tracking: Tracking) -> Iterator[None]:
    """Turn exceptions of MLflow and the libraries below it into one line that names the deployment."""
    try:
        yield
    except Exception as error:
        if not (isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _BELOW):
            raise
        remedy = next((f": {remedy}" for words, remedy in _LASTING.items() if words in str(error)), "")
        raise UserError(f"MLflow at {tracking.description} refuses: {reason(error)}{remedy}") from error


def patient(client: MlflowClient) -> MlflowClient:
    """Return the client with retries for many concurrent writers: calls that a busy database refuses, for a minute.

    On a server, a refused call may have had its effect nevertheless. So use this only for calls that can be repeated.
    """
    return cast("MlflowClient", _Patient(client))


class _Patient:
    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        return _repeated(call) if callable(call) else call


def _repeated(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def retrying(*arguments: Any, **named: Any) -> Any:
        for pause in pauses(_RETRY_FOR_S):
            try:
                return call(*arguments, **named)
            except Exception as error:
                if not _is_busy(error):
                    raise
            time.sleep(pause)
        return call(*arguments, **named)

    return retrying


def _is_busy(error: Exception) -> bool:
    """Return whether a database refused a call because it was busy; MLflow does not wrap errors of opening one."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    if any(words in str(error) for words in _LASTING):
        return False
    if "unique" in str(error).lower() and _SAME_ALIAS in str(error):
        return True
    if isinstance(error, MlflowException):
        return error.error_code == "TEMPORARILY_UNAVAILABLE" or _GAVE_UP in str(error)
    return isinstance(error, OperationalError) and "locked" in str(error)
