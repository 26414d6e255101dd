"""kill -9 of the command, twice, while it reads archives laid out like ImageNet's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.storage import LocalStore
from pipelines.config.prepare import PrepareConfig
from pipelines.data.prepare.prepare import prepare
from pipelines.data.prepare.sources import open_source
from pipelines.data.shards.manifest import load_manifest
from tests.pipelines.data import built
from tests.pipelines.data.built import put
from tests.pipelines.data.conftest import encoded, picture

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[4]
DEADLINE_S = 120


def large(seed: int) -> bytes:
    """About 60 kB, so that there are many shards of a megabyte."""
    return encoded(picture(960, 720, seed).effect_spread(3), quality=92)


@pytest.mark.timeout(600)  # four starts of Ray
@pytest.mark.usefixtures("ray_local")
def test_killed_twice_the_manifest_is_that_of_an_unbroken_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(built, "jpeg", large)
    archives = put(tmp_path / "archives", built.imagenet_files(per_class=60))
    unbroken = prepare(
        open_source(str(archives), validation=PrepareConfig().validation),
        LocalStore(uri=str(tmp_path / "unbroken")),
        PrepareConfig(shard_mb=1),
    )
    assert len(unbroken.shards) > 12
    store = LocalStore(uri=str(tmp_path / "killed"))
    command = [sys.executable, str(ROOT / "pipelines" / "prepare.py"), str(archives), store.uri]
    command += ["--set", "prepare.shard_mb=1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    finished: list[int] = []
    for further in (1, 3):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        wanted, deadline = (finished[-1] if finished else 0) + further, time.monotonic() + DEADLINE_S
        while _records(store) < wanted and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        finished.append(_records(store))
        assert not store.exists("manifest.json")
        assert any(path.startswith("_progress/index-") for path, _ in store.list("_progress"))
    assert finished[0] < finished[1] < len(unbroken.shards)
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    first_line = next(line for line in result.stdout.splitlines() if " of 246 images" in line)
    assert not first_line.startswith("0 of")
    assert load_manifest(store) == unbroken
    assert not store.list("_progress")


def _records(store: LocalStore) -> int:
    return sum(path.endswith(".parquet.json") for path, _ in store.list("_progress"))
