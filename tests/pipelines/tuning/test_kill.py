"""`kill -9` of the command half-way: the same command ends the study, with exactly the planned trials."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.conftest import COLOURS, coloured
from tests.pipelines.tuning.conftest import Spaces
from tests.pipelines.tuning.test_study import children

ROOT = Path(__file__).parents[3]
SECRET = "hunter2"
ASHA = '[scheduler]\nname = "asha"\neta = 4'


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where Ray keeps its session: pytest's own folders are too long for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="kill-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def command(folder: Path, scratch: Path) -> subprocess.Popen[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "RAY_", "AWS_"))}
    environment = {**kept, "RAY_AUTH_MODE": "disabled", "AWS_SECRET_ACCESS_KEY": SECRET, "TMPDIR": str(scratch)}
    call = [sys.executable, str(ROOT / "pipelines/tune.py"), str(folder / "study.toml")]
    return subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def trials(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "runs/studies/study/trials").glob("*.json"))
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_killed_half_way_the_study_ends_as_planned(tmp_path: Path, scratch: Path) -> None:
    data = coloured(tmp_path, COLOURS, per_class=40).store.uri
    Spaces(tmp_path, data).write(ASHA, **{"trials = 4": "trials = 5"})
    first = command(tmp_path, scratch)
    for _ in range(3000):
        states = [trial["state"] != "running" for trial in trials(tmp_path)]
        if sum(states) >= 2 or first.poll() is not None:
            break
        time.sleep(0.1)
    assert first.poll() is None, first.communicate()[0]
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = {trial["number"]: trial for trial in trials(tmp_path) if trial["state"] != "running"}
    again = command(tmp_path, scratch)
    told, _ = again.communicate(timeout=600)
    assert again.returncode == 0, told
    after = trials(tmp_path)
    assert [trial["number"] for trial in after] == [0, 1, 2, 3, 4]
    assert {trial["state"] for trial in after} <= {"finished", "stopped"}
    assert {number: after[number] for number in before} == before
    assert not any(f"trial {number:03d} from" in told for number in before)
    parent = json.loads((tmp_path / "runs/studies/study/study.json").read_text())["run_id"]
    assert set(children(tmp_path, parent)) == {"000", "001", "002", "003", "004"}
    assert not [path for path in (tmp_path / "runs").rglob("*.pkl")]
    files = [path for folder in (tmp_path, scratch) for path in folder.rglob("*")]
    holders = [path for path in files if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holders == []
