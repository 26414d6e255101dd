"""The tracker: in order, once, through restarts and outages, and never in the way."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, TEMPORARILY_UNAVAILABLE
from sqlalchemy.exc import OperationalError

from infra.errors import UserError
from infra.tracking.address import redact
from infra.tracking.client import Tracking, connect, one_line_errors, patient, resolve_tracking
from infra.tracking.metric_point import MetricPoint
from infra.tracking.tracker import RunInfo, Tracker
from tests.waiting import wait_until

ServerAt = Callable[[Path, int], AbstractContextManager[str]]


def _record(step: int, **metrics: float) -> MetricPoint:
    named = {key.replace("__", "/"): value for key, value in metrics.items()}
    return MetricPoint(
        step=step, time_ms=1_000 * step, metrics=named or {"train/loss": 1 / step, "train/accuracy": 0.5}
    )


def _start(tracking: Tracking, run_id: str | None = None, warnings: list[str] | None = None) -> Tracker:
    info = RunInfo(experiment="digits", name="demo", run_id=run_id, params={"optim.lr": 0.1}, tags={"code": "abc"})
    return Tracker.start(tracking, info, warn=(warnings if warnings is not None else []).append)


def _steps(tracking: Tracking, run_id: str, key: str) -> list[int]:
    """As the database returns them: with every doubled point."""
    return [point.step for point in connect(tracking).get_metric_history(run_id, key)]


def test_a_record_survives_its_line() -> None:
    record = _record(3, train__loss=0.25, lr=1e-3)
    assert MetricPoint.from_json(record.to_json()) == record
    assert MetricPoint.from_json(_record(3, a=float("nan"), b=float("inf"), c=1.0).to_json()).metrics == {"c": 1.0}


def test_a_run_says_what_it_is(tracking: Tracking) -> None:
    tracker = _start(tracking)
    tracker.log(_record(1, train__loss=0.5, broken=float("nan"), endless=float("inf")))
    tracker.text("recipe/resolved.toml", "seed = 1\n")
    tracker.dataset("mnist", "d" * 64, "s3://bucket/mnist", "train")
    assert tracker.finish("FINISHED", timeout_s=30)
    run = connect(tracking).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "demo"
    assert run.data.params == {"optim.lr": "0.1"}
    assert run.data.tags["code"] == "abc"
    assert run.data.metrics == {"train/loss": 0.5}
    assert run.inputs is not None
    (link,) = run.inputs.dataset_inputs
    assert (link.dataset.name, link.dataset.digest) == ("mnist", "d" * 36)
    assert json.loads(link.dataset.source) == {"uri": "s3://bucket/mnist"}
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "recipe/resolved.toml").read_text() == "seed = 1\n"
    page = f"experiments/{tracker.experiment_id}/runs/{tracker.run_id}?workflowType=machine_learning"
    assert tracker.ui_url == f"http://127.0.0.1:5000/#/{page}"  # where `make ui` shows it


def test_a_figure_is_drawn_when_given(tracking: Tracking) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    tracker = _start(tracking)
    tracker.figure("plots/loss.png", figure)
    assert tracker.finish("FINISHED", timeout_s=30)
    uri = connect(tracking).get_run(tracker.run_id).info.artifact_uri
    assert Path(uri.removeprefix("file://"), "plots/loss.png").read_bytes().startswith(b"\x89PNG")


def test_more_than_one_batch_arrives_in_order(tracking: Tracking) -> None:
    tracker = _start(tracking)
    for step in range(1, 1201):
        tracker.log(_record(step))
        if step == 600:
            tracker.text("half.txt", "600")
    assert tracker.finish("FINISHED", timeout_s=60)
    assert _steps(tracking, tracker.run_id, "train/loss") == list(range(1, 1201))


def test_many_and_long_params(tracking: Tracking) -> None:
    params = {f"section.key{i}": "v" * 7000 for i in range(150)}
    tracker = Tracker.start(tracking, RunInfo(experiment="e", name="n", params=params), warn=print)
    tracker.finish("FINISHED", timeout_s=30)
    logged = connect(tracking).get_run(tracker.run_id).data.params
    assert len(logged) == 150
    assert set(map(len, logged.values())) == {6000}


def test_a_restart_neither_doubles_nor_skips(tracking: Tracking) -> None:
    """Killed after step 8, going on from a checkpoint of step 5, whose history the driver replays."""
    first = _start(tracking)
    for step in range(1, 9):
        first.log(_record(step))
    first.log(_record(4, test__loss=0.9))
    assert first.finish("KILLED", timeout_s=30)

    second = _start(tracking, run_id=first.run_id)
    assert connect(tracking).get_run(first.run_id).info.status == "RUNNING"
    for step in range(1, 6):
        second.log(_record(step))
    for step in range(6, 13):
        later = _record(step, train__loss=7.0)
        second.log(MetricPoint(step=step, time_ms=later.time_ms + 999, metrics=later.metrics))
    second.log(_record(8, test__loss=0.8))
    assert second.finish("FINISHED", timeout_s=30)
    assert _steps(tracking, first.run_id, "train/loss") == list(range(1, 13))
    assert _steps(tracking, first.run_id, "test/loss") == [4, 8]


def test_workers_that_start_over_within_one_process_double_nothing(tracking: Tracking) -> None:
    tracker = _start(tracking)
    for step in (1, 2, 3, 2, 3, 4):
        tracker.log(_record(step))
    assert tracker.finish("FINISHED", timeout_s=30)
    assert _steps(tracking, tracker.run_id, "train/loss") == [1, 2, 3, 4]


def test_replaying_a_history_fills_the_gap(tracking: Tracking) -> None:
    """The first driver died during an outage: MLflow has steps 1 to 3, the checkpoint knows 1 to 9."""
    first = _start(tracking)
    for step in range(1, 4):
        first.log(_record(step))
    assert first.finish("KILLED", timeout_s=30)
    second = _start(tracking, run_id=first.run_id)
    for step in range(1, 10):
        second.log(_record(step))
    assert second.finish("FINISHED", timeout_s=30)
    assert _steps(tracking, first.run_id, "train/accuracy") == list(range(1, 10))


def test_failures_keep_everything_and_are_told_once(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    tracker = _start(tracking, warnings=warnings)
    real, failures = tracker._client.log_batch, iter([True, True])

    def log_batch(*arguments: object, **named: object) -> None:
        if next(failures, False):
            raise ConnectionError("http://user:secret@host/api is away\nand more")
        real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(tracker._client, "log_batch", log_batch)
    for step in range(1, 6):
        tracker.log(_record(step))
    assert tracker.finish("FINISHED", timeout_s=30)
    assert tracker.pending == 0
    assert _steps(tracking, tracker.run_id, "train/loss") == [1, 2, 3, 4, 5]
    began, ended = warnings
    assert "accepts no data at present (http://host/api is away): training continues" in began
    assert "is back" in ended


def test_finish_gives_up_in_time_and_says_so(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = _start(tracking)

    def away(*_: object, **__: object) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(tracker._client, "log_batch", away)
    tracker.log(_record(1))
    assert tracker.finish("FINISHED", timeout_s=0.2) is False
    assert tracker.pending == 2  # the record, and the run's status
    monkeypatch.undo()
    tracker._thread.join(30)
    assert tracker.pending == 0


def test_a_run_that_mlflow_does_not_know(tracking: Tracking) -> None:
    with pytest.raises(UserError, match="has no run 0123abcd, which this job began"):
        _start(tracking, run_id="0123abcd")


def test_a_deleted_run_is_named_with_the_command_that_brings_it_back(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = _start(tracking)
    tracker.finish("FINISHED", timeout_s=30)
    connect(tracking).delete_run(tracker.run_id)
    with pytest.raises(UserError, match=f"run {tracker.run_id} was deleted: `env MLFLOW_TRACKING_URI=") as refused:
        _start(tracking, run_id=tracker.run_id)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    restore = str(refused.value).split("`")[1]  # runs as it stands
    subprocess.run(restore, shell=True, env={**os.environ, "PATH": path}, check=True, capture_output=True)
    _start(tracking, run_id=tracker.run_id).finish("FINISHED", timeout_s=30)


def test_where_tracking_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = resolve_tracking(tmp_path)
    assert local.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert local.artifact_location == f"file://{tmp_path}/mlartifacts"
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", "s3://bucket/mlflow")
    assert resolve_tracking(tmp_path).artifact_location == "s3://bucket/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:pw@mlflow.example")
    assert resolve_tracking(tmp_path) == Tracking(uri="https://user:pw@mlflow.example", artifact_location=None)
    assert resolve_tracking(tmp_path).description == "https://mlflow.example"


def test_no_credentials_in_lines() -> None:
    assert redact("postgresql://me:pw@db/x and http://h:1/a@b") == "postgresql://db/x and http://h:1/a@b"


def test_no_server_at_start(free_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:password@127.0.0.1:{free_port}")
    with pytest.raises(UserError, match=r"no MLflow server answers at http://127.0.0.1:\d+ .*refused") as caught:
        _start(resolve_tracking(tmp_path))
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("127.0.0.1:5000", "127.0.0.1:5000: expected http://HOST:PORT, .* did you mean http://127.0.0.1:5000?"),
        ("mlflow.example", "did you mean http://mlflow.example?"),
        ("file:///home/me/mlruns", "MLFLOW_TRACKING_URI=sqlite:////home/me/mlruns/mlflow.db$"),
        ("/home/me/mlruns", "MLFLOW_TRACKING_URI=sqlite:////home/me/mlruns/mlflow.db$"),
        ("ftp://host/x", "MLFLOW_TRACKING_URI is ftp://host/x: expected http://HOST:PORT"),
        ("http://localhost:abc", "has no valid host and port"),
        ("http://[bad", "has no valid host and port"),
        ("http://", "has no valid host and port"),
        ("postgresql://me:secret@host:port/x", "postgresql://host:port/x, which has no valid host and port"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite://runs/mlflow.db", "names no file"),
    ],
)
def test_an_address_that_is_none(uri: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=told) as caught:
        connect(resolve_tracking(tmp_path))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql", "mysql+pymysql"])
def test_a_database_server_that_does_not_answer(scheme: str, free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow itself is not asked: it tries for minutes, and tells of each attempt."""
    monkeypatch.setattr("mlflow.MlflowClient.__init__", lambda *_, **__: pytest.fail("MLflow was asked"))
    with pytest.raises(UserError, match=rf"no MLflow database answers at {scheme.replace('+', '.')}://127") as caught:
        connect(Tracking(uri=f"{scheme}://me:secret@127.0.0.1:{free_port}/runs"))
    assert "secret" not in str(caught.value)


def test_a_driver_that_is_not_installed() -> None:
    with pytest.raises(UserError, match=r"no MLflow database answers at postgresql\+nosuchdriver:.*nosuchdriver"):
        connect(Tracking(uri="postgresql+nosuchdriver:///runs"))


def test_another_protocol_at_the_address(tmp_path: Path) -> None:
    """Such as sshd's."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-OpenSSH\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(UserError, match=r"no MLflow server answers at http://127\."):
            connect(Tracking(uri=f"http://127.0.0.1:{server.getsockname()[1]}"))


@pytest.mark.parametrize("name", ["what?x=1", "a%41b", "a b#c", "ä;é'"])
def test_any_folder_is_a_home(name: str, blank_database: Path, tmp_path: Path) -> None:
    home = tmp_path / name
    home.mkdir()
    shutil.copy(blank_database, home / "mlflow.db")
    tracking = resolve_tracking(home)
    tracker = _start(tracking)
    tracker.text("notes.txt", "hello")
    assert tracker.finish("FINISHED", timeout_s=30)
    assert connect(resolve_tracking(home)).get_run(tracker.run_id).info.status == "FINISHED"
    assert sorted(path.name for path in home.iterdir()) == ["mlartifacts", "mlflow.db"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_user_without_a_name(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container that runs as a number, `docker run --user 12345`."""

    def unknown(_: int) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    tracker = _start(tracking)
    assert tracker.finish("FINISHED", timeout_s=30)
    assert connect(tracking).get_run(tracker.run_id).data.tags["mlflow.user"] == str(os.getuid())


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep MLflow's database in"):
        connect(resolve_tracking(tmp_path / "file/home"))


def test_a_database_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database, and is long enough to be read as a header of one" * 20)
    with pytest.raises(UserError, match=r"MLflow at sqlite:.*mlflow.db refuses: .*not a database"):
        connect(resolve_tracking(tmp_path))


@pytest.mark.parametrize(
    "words",
    [
        "(sqlite3.IntegrityError) UNIQUE constraint failed: registered_model_aliases.workspace, "
        "registered_model_aliases.name, registered_model_aliases.alias",
        '(psycopg2.errors.UniqueViolation) duplicate key value violates unique constraint "registered_model_alias_pk"',
    ],
)
def test_an_alias_that_two_writers_create_at_once_is_set_again(words: str) -> None:
    calls: list[str] = []

    class Client:
        def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
            calls.append(version)
            if len(calls) == 1:
                raise MlflowException(words, error_code=BAD_REQUEST)

    patient(cast("MlflowClient", Client())).set_registered_model_alias("digits", "champion", "8")
    assert calls == ["8", "8"]


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("database or disk is full", "free some space there, and run the same command again"),
        ("attempt to write a readonly database", "make it writable, or set MLFLOW_TRACKING_URI to another place"),
    ],
)
def test_what_no_repetition_mends_is_said_at_once(tracking: Tracking, words: str, remedy: str) -> None:
    """MLflow calls it temporary, as a database that is locked."""
    calls: list[str] = []

    class Client:
        def create_experiment(self, name: str) -> None:
            calls.append(name)
            cause = OperationalError(None, None, sqlite3.OperationalError(words))
            raise MlflowException(str(cause), error_code=TEMPORARILY_UNAVAILABLE)

    line = rf"MLflow at sqlite:\S+ refuses: .*{words}: {remedy}$"
    with pytest.raises(UserError, match=line), one_line_errors(tracking):
        patient(cast("MlflowClient", Client())).create_experiment("digits")
    assert calls == ["digits"]


@pytest.mark.faults
def test_a_server_that_goes_away_and_comes_back(
    mlflow_server: ServerAt, free_port: int, blank_database: Path, tmp_path: Path
) -> None:
    """Steps 1-3 with the server, 4-6 and an artifact without it, 7-8 after it is back: one run, no gap, no double."""
    shutil.copy(blank_database, tmp_path / "mlflow.db")
    warnings: list[str] = []
    with mlflow_server(tmp_path, free_port) as url:
        tracking = Tracking(uri=url)
        tracker = _start(tracking, warnings=warnings)
        page = f"experiments/{tracker.experiment_id}/runs/{tracker.run_id}?workflowType=machine_learning"
        assert tracker.ui_url == f"{url}/#/{page}"
        for step in (1, 2, 3):
            tracker.log(_record(step))
        wait_until(lambda: tracker.pending == 0)
    for step in (4, 5, 6):
        tracker.log(_record(step))
    tracker.text("notes/outage.txt", "written while MLflow was away")
    wait_until(lambda: bool(warnings))
    assert tracker.pending == 4
    with mlflow_server(tmp_path, free_port):
        for step in (7, 8):
            tracker.log(_record(step))
        assert tracker.finish("FINISHED", timeout_s=60)
        assert _steps(tracking, tracker.run_id, "train/loss") == list(range(1, 9))
        assert connect(tracking).get_run(tracker.run_id).info.status == "FINISHED"
        (artifact,) = connect(tracking).list_artifacts(tracker.run_id, "notes")
        assert artifact.path == "notes/outage.txt"
    assert len(warnings) == 2, warnings


def test_a_run_that_is_asked_to_stop_is_killed_already(tracking: Tracking) -> None:
    """Whatever becomes of the process after that; a run that still ends well is finished."""
    tracker = _start(tracking)
    tracker.killed()
    assert connect(tracking).get_run(tracker.run_id).info.status == "KILLED"
    tracker.log(_record(1))
    assert tracker.finish("FINISHED", timeout_s=30)
    assert connect(tracking).get_run(tracker.run_id).info.status == "FINISHED"
    assert _steps(tracking, tracker.run_id, "train/loss") == [1]
