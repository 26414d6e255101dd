"""predict.py at scale: every image exactly once, with the classes that evaluation finds, also after kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra.errors import UserError
from infra.registry.versions import load
from pipelines import predict
from tests.pipelines.conftest import COLOURS, SIZE, Coloured, album, picture
from tests.pipelines.registered import Registry

ROOT = Path(__file__).parents[3]
Predict = Callable[..., list[str]]


@pytest.fixture
def command(
    ray_local: None, registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Predict:
    """predict.py in this process: the lines that it prints."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", raising=False)

    def run(*arguments: object) -> list[str]:
        model = ["--model", registry.first.uri, "--home", registry.home]
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, [*arguments, *model])])
        assert predict.main() == 0
        said = capsys.readouterr()
        named, *rest = said.err.splitlines()
        assert named.startswith("model: models:/")
        return [*said.out.splitlines(), *rest]

    return run


def test_a_data_set_has_the_classes_of_its_evaluation_and_is_finished_once(
    command: Predict, colours: Coloured, registry: Registry, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = (colours.store.uri, "--out", out, "--all", "--file-rows", 10)
    lines = command(*arguments)
    assert lines[-1].startswith("60 images in 2 files at ")
    table = pq.read_table(out)
    splits = [colours.columns(split) for split in colours.manifest.splits]
    rows = {name: np.concatenate([split[name] for split in splits]) for name in splits[0]}
    order = np.argsort(rows["id"])
    probabilities = load(registry.tracking, registry.first.uri).predict(rows["image"][order])
    assert table["id"].to_pylist() == rows["id"][order].tolist()
    np.testing.assert_allclose(np.array(table["probabilities"].to_pylist()), probabilities, atol=1e-6)
    assert table["class"].to_pylist() == probabilities.argmax(axis=1).tolist() == rows["label"][order].tolist()
    assert [len(top) for top in table["top"].to_pylist()] == [3] * 60

    files = sorted(out.glob("*.parquet"))
    times = {file: file.stat().st_mtime_ns for file in files}
    assert command(*arguments)[0] == "nothing to do: all predictions are written"
    files[0].unlink()
    assert "classified" in command(*arguments)[1]
    assert pq.read_table(out)["id"].to_pylist() == rows["id"][order].tolist()
    assert {file for file in files if file.stat().st_mtime_ns != times[file]} == {files[0]}
    with pytest.raises(UserError, match="holds predictions of another job"):
        command(*arguments, "--top", 1)


def test_a_folder_with_bad_pictures_has_their_reasons(command: Predict, tmp_path: Path) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    for place in range(150):
        picture(list(COLOURS.values())[place % 3], place).save(folder / f"{place:03d}.png")
    (folder / "bad.jpg").write_bytes(b"no image")
    lines = command(folder, "--out", tmp_path / "out", "--top", 1, "--actors", 2)
    assert lines[-2].endswith("1 of them not classified: see the column reason")
    assert lines[-1] == f"{folder}/bad.jpg does not decode: not an image (8 bytes)"
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [row["id"] for row in rows] == list(range(151))
    assert [row["name"] for row in rows[:150]] == [list(COLOURS)[place % 3] for place in range(150)]
    assert (rows[150]["name"], rows[150]["reason"]) == (None, "not an image (8 bytes)")


def test_a_data_set_needs_a_place_for_its_predictions(command: Predict, colours: Coloured) -> None:
    with pytest.raises(UserError, match="give a folder for the predictions with --out"):
        command(colours.store.uri)


@pytest.mark.faults
def test_kill_9_and_the_same_command_goes_on(registry: Registry, tmp_path: Path) -> None:
    folder, out = tmp_path / "album", tmp_path / "out"
    folder.mkdir()
    album(folder, 1000, side=20 * SIZE)
    command = [sys.executable, str(ROOT / "pipelines/predict.py"), str(folder), "--out", str(out)]
    command += ["--model", registry.first.uri, "--home", str(registry.home), "--file-rows", "64"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    kills = []
    for _ in range(2):
        there = len(list(out.glob("*.parquet")))
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 120
        while len(list(out.glob("*.parquet"))) < there + 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills.append(sorted(out.glob("*.parquet")))
    times = {file: file.stat().st_mtime_ns for file in kills[-1]}
    assert 4 <= len(times) < 16
    ended = subprocess.run(command, env=environment, check=True, timeout=240, stderr=subprocess.PIPE, text=True)
    assert "core_worker" not in ended.stderr
    assert {file: file.stat().st_mtime_ns for file in times} == times
    rows = pq.read_table(out).to_pylist()
    assert [row["id"] for row in rows] == list(range(1000))
    assert [Path(row["path"]).name for row in rows] == [f"{place:04d}.png" for place in range(1000)]
