"""Services that the tests of infra run against: a real S3 server, and an MLflow database of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import boto3
import pytest

from infra.errors import UserError
from infra.s3_server import S3Server, serve_s3
from infra.tracking.client import Tracking, connect, resolve_tracking
from tests.mlflow_server import serve_mlflow


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No endpoint or credentials of the machine's own, and none of another test's."""
    for key in list(os.environ):
        if key.startswith("AWS_") or key in ("MLFLOW_TRACKING_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT"):
            monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # which keeps the credentials it met first


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    try:
        with serve_s3(tmp_path_factory.mktemp("s3"), bucket="tests") as server:
            yield server
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with the environment that its clients need."""
    for key, value in s3_server.environment.items():
        monkeypatch.setenv(key, value)
    return s3_server


@pytest.fixture(scope="session")
def blank_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables: making them takes longer than most tests."""
    home = tmp_path_factory.mktemp("mlflow")
    connect(Tracking(uri=f"sqlite:///{home / 'mlflow.db'}"))
    return home / "mlflow.db"


@pytest.fixture
def tracking(blank_database: Path, tmp_path: Path) -> Tracking:
    """A database of the test's own in tmp_path, as a user without a server has one."""
    shutil.copy(blank_database, tmp_path / "mlflow.db")
    return resolve_tracking(tmp_path)


@pytest.fixture
def mlflow_server() -> Callable[[Path, int], AbstractContextManager[str]]:
    """Serves ``home/mlflow.db`` and ``home/served`` at a port of loopback, as a context that gives the URL."""
    return serve_mlflow
