"""Ctrl-C on a real terminal, which sends it to Ray's processes as well: what is done is kept, and nothing is left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from infra.storage import LocalStore
from infra.tracking.tracker import resolve_tracking
from pipelines.checkpoint import Checkpoint, RunFolder
from pipelines.data.order.ledger import Ledger
from tests.pipelines.conftest import COLOURS, album, coloured, picture
from tests.pipelines.registered import Registry
from tests.pipelines.terminal import ROOT, Terminal
from tests.pipelines.tuning.conftest import Spaces

RECIPE = """
[model]
name = "resnet20"
[data]
uri = "data"
image_size = 16
train_crop = "center"
eval_resize = 16
ordered = true
[optim]
global_batch_size = 10
[schedule]
length = {steps}
unit = "steps"
[run]
log_every_steps = 1
eval_every_epochs = 50
register_as = "colours"
"""
STEPS = 240
STOPPING = r"stopping: committing a checkpoint \(Ctrl-C again ends at once\)"
TRAINS = r"step [1-9]\d*/"


@dataclass(kw_only=True)
class Shell:
    """A folder with a prepared data set and a recipe, and commands in it."""

    folder: Path
    recipe: str = "colours.toml"
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
        self.environment = {**kept, "RAY_AUTH_MODE": "disabled", "TERM": "xterm", "COLUMNS": "200"}
        (self.folder / self.recipe).write_text(RECIPE.format(steps=STEPS))

    def terminal(self, verb: str, *arguments: str) -> Terminal:
        command = [str(ROOT / f"pipelines/{verb}.py"), *arguments]
        return Terminal(command, cwd=self.folder, environment=self.environment)

    def to_the_end(self, verb: str, *arguments: str) -> str:
        command = [sys.executable, str(ROOT / f"pipelines/{verb}.py"), *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run_folder(self, name: str) -> RunFolder:
        return RunFolder(LocalStore(uri=str(self.folder / "runs" / name)))

    def newest(self, name: str) -> Checkpoint:
        found = self.run_folder(name).newest(pytest.fail)
        assert found
        return found

    def mlflow(self) -> dict[str, str]:
        """Status of every run, by name."""
        client = MlflowClient(resolve_tracking(str(self.folder / "runs")).uri)
        experiments = [each.experiment_id for each in client.search_experiments()]
        return {str(run.info.run_name): run.info.status for run in client.search_runs(experiments)}


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("ctrl-c")
    coloured(folder, COLOURS, per_class=200)  # 8 epochs: with few images, most of the time is between epochs
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Shell(folder=folder)


@pytest.fixture(scope="module")
def unbroken(shell: Shell) -> Checkpoint:
    shell.to_the_end("train", shell.recipe, "--set", "run.name=unbroken", "--set", "run.num_workers=0")
    return shell.newest("unbroken")


def check_end(terminal: Terminal, last_line: str) -> None:
    """Status 130, no traceback, the last line as wanted, and no process of Ray's is left."""
    assert terminal.ended() == 130, terminal.text
    assert "Traceback" not in terminal.text
    assert re.fullmatch(last_line, terminal.lines[-1]), terminal.text
    terminal.check_all_gone()


def check_same_end(found: Checkpoint, expected: Checkpoint, *, bits: bool) -> None:
    """Every image once in each epoch (a ledger refuses a second time), every step recorded once; the same weights."""
    assert found.step == expected.step == STEPS
    assert Ledger.from_arrays(found.ledger).report() == Ledger.from_arrays(expected.ledger).report()
    assert [each.step for each in found.records if "train/loss" in each.metrics] == list(range(1, STEPS + 1))
    if bits:
        tensors = [(group, name, tensor) for group, named in expected.tensors.items() for name, tensor in named.items()]
        assert all(found.tensors[group][name].equal(tensor) for group, name, tensor in tensors)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_train_commits_a_checkpoint_and_the_same_command_resumes(
    shell: Shell, unbroken: Checkpoint, workers: int
) -> None:
    name = f"on-{workers}"
    command = [shell.recipe, "--set", f"run.name={name}", "--set", f"run.num_workers={workers}"]
    with shell.terminal("train", *command) as terminal:
        terminal.wait_for(TRAINS)
        terminal.press()
        terminal.wait_for(STOPPING)
        check_end(terminal, r"interrupted at step \d+: the same command resumes")
        step = int(terminal.lines[-1].split()[3].rstrip(":"))
        assert f"checkpoint of step {step} committed before stopping" in terminal.lines
    assert 0 < step < STEPS
    assert shell.run_folder(name).steps()[-1] == step
    assert shell.mlflow()[name] == "KILLED"
    assert f"from step {step}" in shell.to_the_end("train", *command)
    check_same_end(shell.newest(name), unbroken, bits=workers < 2)
    assert shell.mlflow()[name] == "FINISHED"


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_second_ends_the_training_at_once(shell: Shell) -> None:
    with shell.terminal("train", shell.recipe, "--set", "run.name=twice", "--set", "run.num_workers=1") as terminal:
        terminal.wait_for(TRAINS)
        terminal.press()
        terminal.wait_for(STOPPING)
        terminal.press()
        check_end(terminal, "interrupted; nothing finished is lost: run the same command again")
        assert "committed" not in terminal.text or "interrupted at step" not in terminal.text
    assert shell.mlflow()["twice"] == "KILLED"


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_before_the_first_step_there_is_nothing_to_wait_for(shell: Shell) -> None:
    with shell.terminal("train", shell.recipe, "--set", "run.name=early", "--set", "run.num_workers=2") as terminal:
        terminal.wait_for("starting the workers")
        terminal.press()
        terminal.wait_for("stopping: no step is under way")
        check_end(terminal, "interrupted before the first checkpoint: the same command resumes")
    assert shell.mlflow()["early"] == "KILLED"


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_while_the_model_is_registered(shell: Shell, unbroken: Checkpoint) -> None:
    """All steps are done: the same command registers the model, once."""
    command = [shell.recipe, "--set", "run.name=last", "--set", "run.num_workers=0", "--set", "run.register_as=last"]
    with shell.terminal("train", *command) as terminal:
        terminal.wait_for("and registering it")
        terminal.press()
        check_end(terminal, f"interrupted at step {STEPS}: the same command resumes")
    assert shell.mlflow()["last"] == "KILLED"
    assert "models:/last/1 (champion)" in shell.to_the_end("train", *command)
    check_same_end(shell.newest("last"), unbroken, bits=True)
    assert shell.mlflow()["last"] == "FINISHED"


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_prepare_keeps_finished_shards(shell: Shell) -> None:
    album, data = shell.folder / "album", shell.folder / "album-data"
    for place in range(60):
        image = picture(list(COLOURS.values())[place % 3], place).resize((1200, 900))
        (album / f"{place % 3}").mkdir(parents=True, exist_ok=True)
        image.save(album / f"{place % 3}/{place:03d}.jpg", quality=95)
    command = ["album", "album-data", "--set", "prepare.min_shards=30"]
    with shell.terminal("prepare", *command) as terminal:
        terminal.wait_for(r"[1-9]\d* of 60 images")
        terminal.press()
        check_end(terminal, r"interrupted: [1-9]\d* of 60 images are kept: the same command resumes")
    kept = {json.loads(file.read_text())["shard"]["path"] for file in data.glob("_progress/**/*.parquet.json")}
    times = {path: (data / path).stat().st_mtime_ns for path in kept}
    assert kept
    assert not (data / "manifest.json").exists()
    told = shell.to_the_end("prepare", *command)
    assert not re.search(r"^0 of 60", told, re.MULTILINE)
    assert {path: (data / path).stat().st_mtime_ns for path in kept} == times
    assert not [file for file in data.rglob("*") if file.name.endswith(".tmp")]


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_predict_keeps_finished_files(shell: Shell, registry: Registry, tmp_path: Path) -> None:
    album(tmp_path, 1000, side=320)
    out = shell.folder / "out"
    command = [str(tmp_path), "--out", str(out), "--home", str(registry.home), "--model", registry.first.uri]
    command += ["--file-rows", "64"]
    with shell.terminal("predict", *command) as terminal:
        terminal.wait_until(lambda: len(list(out.glob("*.parquet"))) > 1)
        terminal.press()
        check_end(terminal, r"interrupted: [\d,]+ of 1,000 images are kept: the same command resumes")
    times = {file: file.stat().st_mtime_ns for file in out.glob("*.parquet")}
    assert 1 < len(times) < 16
    shell.to_the_end("predict", *command)
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert pq.read_table(out)["id"].to_pylist() == list(range(1000))


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_tune_has_its_trials_commit(shell: Shell) -> None:
    Spaces(shell.folder, str(shell.folder / "data"), workers=1).write(**{"trials = 4": "trials = 3"})
    longer = ["study.toml", "--set", "schedule.length=400", "--set", "run.log_every_steps=1"]
    with shell.terminal("tune", *longer) as terminal:
        terminal.wait_until(lambda: any(shell.run_folder(f"study-{n:03d}").steps() for n in range(3)))
        terminal.press()
        terminal.wait_for(r"stopping: [1-9] trials commit a checkpoint \(Ctrl-C again ends at once\)")
        check_end(terminal, "interrupted, 0 of 3 trials are over: the same command resumes")
    steps = {n: found[-1] for n in range(3) if (found := shell.run_folder(f"study-{n:03d}").steps())}
    assert any(step % 100 for step in steps.values()), "no trial has left between two reports"
    trials = [json.loads(file.read_text()) for file in sorted(shell.folder.glob("runs/studies/study/trials/*.json"))]
    assert {trial["state"] for trial in trials} == {"running"}
    statuses = shell.mlflow()
    assert statuses["study"] == "KILLED"
    assert {statuses[name] for name in statuses if name.startswith("study-")} == {"KILLED"}
    shell.to_the_end("tune", *longer)
    trials = [json.loads(file.read_text()) for file in sorted(shell.folder.glob("runs/studies/study/trials/*.json"))]
    assert [trial["number"] for trial in trials] == [0, 1, 2]
    assert [[report["report"] for report in trial["reports"]] for trial in trials] == [[1, 2, 3, 4]] * 3
    for number in steps:
        *whole, _ = Ledger.from_arrays(shell.newest(f"study-{number:03d}").ledger).report().values()
        assert {epoch.never for epoch in whole} == {0}
    assert {status for name, status in shell.mlflow().items() if name.startswith("study")} == {"FINISHED"}


SUITE = """
title = "Colours"
recipe = "{recipe}"
seeds = [0, 1]
measures = ["test_error"]
[[entry]]
name = "residual"
set.model.name = "resnet20"
"""


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_reproduce_within_a_run_and_between_two(shell: Shell) -> None:
    (shell.folder / "suite.toml").write_text(SUITE.format(recipe=shell.folder / shell.recipe))
    command = ["suite.toml", "--set", "run.num_workers=0"]
    with shell.terminal("reproduce", *command) as terminal:
        terminal.wait_for(TRAINS)
        terminal.press()
        terminal.wait_for(STOPPING)
        check_end(terminal, r"interrupted at step [1-9]\d*, 0 of 2 runs finished: the same command resumes")
    with shell.terminal("reproduce", *command) as terminal:
        terminal.wait_for("measuring")
        terminal.press()
        # a fast machine has begun the second run by then
        where = r"( before the first checkpoint| at step \d+)?"
        check_end(terminal, rf"interrupted{where}, 1 of 2 runs finished: the same command resumes")
    assert shell.mlflow()["suite"] == "KILLED"
    assert "2 of 2" in shell.to_the_end("reproduce", *command)
    assert shell.mlflow()["suite"] == "FINISHED"
    runs = [folder.name for folder in (shell.folder / "runs").iterdir() if "residual" in folder.name]
    assert len(runs) == 2
    for name in runs:
        check_same_end(shell.newest(name), shell.newest(name), bits=False)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_serve_ends_cleanly(shell: Shell, registry: Registry, free_port: int) -> None:
    command = ["--home", str(registry.home), "--model", registry.uri, "--port", str(free_port)]
    with shell.terminal("serve", *command) as terminal:
        terminal.wait_for("metrics at")
        terminal.press()
        assert terminal.ended() == 0
        assert terminal.lines[-1] == "stopping: requests that are under way get their answers"
        terminal.check_all_gone()
