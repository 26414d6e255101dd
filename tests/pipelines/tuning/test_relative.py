"""A study as the documents have it: relative paths, the default, in whichever folder the command is given."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from infra.tracking.tracker import resolve_tracking
from tests.pipelines.conftest import COLOURS, coloured
from tests.pipelines.tuning.conftest import RECIPE, SPACE
from tests.pipelines.tuning.test_study import children

pytestmark = pytest.mark.faults  # minutes of trials
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """A folder with a data set, a recipe and a space; its name is short, for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="study-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        shutil.copytree(coloured(work / "made", COLOURS, per_class=20).store.uri, work / "data/photos")
        text = RECIPE.replace('home = "{home}"\n', "").format(data="data/photos", workers=1)
        (work / "small.toml").write_text(text)
        space = SPACE.format(recipe="small.toml", more="").replace("trials = 4", "trials = 2")
        (work / "study.toml").write_text(space.replace("reports = 4", "reports = 2"))
        yield work


def tune(work: Path, *options: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_", "AWS_"))}
    environment = {**kept, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(work / "ray")}
    command = [sys.executable, str(ROOT / "pipelines/tune.py"), "study.toml", *options]
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=500)


@pytest.mark.timeout(900)
def test_a_study_with_relative_paths_trains_and_goes_on(work: Path) -> None:
    ended = tune(work)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "table and figures  runs/studies/study " in ended.stdout
    trials = [json.loads(file.read_text()) for file in sorted((work / "runs/studies/study/trials").glob("*.json"))]
    assert [(trial["state"], len(trial["reports"])) for trial in trials] == [("finished", 2)] * 2
    parent = json.loads((work / "runs/studies/study/study.json").read_text())["run_id"]
    found = children(work, parent)
    assert {number: run.info.status for number, run in found.items()} == {"000": "FINISHED", "001": "FINISHED"}
    client = MlflowClient(resolve_tracking(work / "runs").uri)
    for number, run in found.items():
        finished = json.loads((work / f"runs/study-{number}/finished.json").read_text())
        assert finished["run_id"] == run.info.run_id
        assert len(client.get_metric_history(run.info.run_id, "test/accuracy")) == 2
    assert not list((work / "ray").rglob("mlflow.db"))

    (work / "runs/studies/study/trials/001.json").unlink()  # as if killed before the second trial
    again = tune(work)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "trial 000 from" not in again.stdout and "trial 001 finished" in again.stdout
    assert set(children(work, parent)) == {"000", "001"}
    assert "study study is finished: nothing to do" in tune(work).stdout
