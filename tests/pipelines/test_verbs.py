"""evaluate, register and predict as a user calls them, on a run's folder that holds a checkpoint."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.errors import UserError
from infra.gate import Decision, Score
from infra.mlflow_client import Tracking, resolve_tracking
from infra.registry import Version, champion, load
from infra.storage import LocalStore
from infra.tracking import RunInfo, Tracker
from pipelines import evaluate, predict, register
from pipelines.checkpoint import RUN, RunFolder
from pipelines.register import register_checkpoint

from .conftest import COLOURS, SIZE, STEP, Coloured, coloured, hand_computed, picture

Weights = dict[str, torch.Tensor]
Command = Callable[..., list[str]]


def swapped(weights: Weights) -> Weights:
    """The same network, calling azure what is lime."""
    return {**weights, **{name: weights[name][[1, 0, 2]] for name in ("fc.weight", "fc.bias")}}


@pytest.fixture(scope="module")
def home(colours: Coloured) -> Path:
    return Path(colours.store.uri).parent


@pytest.fixture(scope="module")
def tracking(home: Path) -> Tracking:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        environment.delenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", raising=False)
        return resolve_tracking(home)


@pytest.fixture(scope="module")
def run_id(tracking: Tracking) -> str:
    tracker = Tracker.start(tracking, RunInfo(experiment="colours", name="demo"), warn=print)
    assert tracker.finish("FINISHED", timeout_s=30)
    return tracker.run_id


@pytest.fixture(scope="module")
def run_folder(colours: Coloured, weights: Weights, home: Path, run_id: str) -> Path:
    """A finished run: its best checkpoint is that of step 30, the newest one, of step 40, was not scored."""
    folder = RunFolder(LocalStore(uri=str(home / "demo")))
    folder.write_json(RUN, {"run_id": run_id})
    folder.write(colours.checkpoint(weights, hand_computed(colours, weights)), keep_best=1)
    folder.write(colours.checkpoint(swapped(weights), {}, step=40), keep_best=1)
    return home / "demo"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A pipeline's main in this process and without Ray: the lines that it prints."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", raising=False)
    monkeypatch.setattr("infra.cluster.connect", lambda *, min_cpus: None)
    monkeypatch.setattr("ray.is_initialized", lambda: False)

    def run(module: types.ModuleType, *arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", [str(module.__file__), *map(str, arguments)])
        module.main()
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.fixture(scope="module")
def registered(
    colours: Coloured, weights: Weights, tracking: Tracking, run_id: str, run_folder: Path
) -> tuple[Version, Decision]:
    """The run's best checkpoint, as training registers it at its end."""
    checkpoint = RunFolder(LocalStore(uri=str(run_folder))).best(print)
    assert checkpoint is not None
    return register_checkpoint(tracking, checkpoint, colours.data, run_id=run_id, name="colours")


def test_the_first_version_is_the_champion(
    registered: tuple[Version, Decision], tracking: Tracking, colours: Coloured, weights: Weights
) -> None:
    version, decision = registered
    expected = hand_computed(colours, weights)
    assert decision == Decision(promote=True, reason="there is no champion yet")
    assert champion(tracking, "colours") == version
    assert version.uri == "models:/colours/1"
    assert version.score == Score(accuracy=1.0, loss=expected["loss"], count=30, data_digest=colours.manifest.digest)
    assert load(tracking, version.uri).metadata == {
        "class_names": ["azure", "lime", "scarlet"],
        "image_size": SIZE,
        "eval_resize": SIZE,
        "data_uri": colours.store.uri,
        "data_digest": colours.manifest.digest,
        "split": "test",
        "recipe": "colours",
    }


@pytest.mark.usefixtures("registered")
def test_register_again_is_the_same_version(command: Command, run_folder: Path) -> None:
    lines = command(register, run_folder, "--name", "colours")
    assert lines[0] == f"models:/colours/1: checkpoint {STEP}, accuracy 1.0000"
    assert lines[1] == ("champion: accuracy 1.0000 is not worse than the champion's 1.0000 on the same 30 images")


@pytest.mark.usefixtures("registered")
def test_a_worse_version_leaves_the_alias(command: Command, run_folder: Path, tracking: Tracking) -> None:
    """The newest checkpoint was not scored in training: it is now."""
    lines = command(register, run_folder, "--name", "colours", "--step", 40)
    assert lines[0] == "models:/colours/2: checkpoint 40, accuracy 0.3333"
    assert lines[1].startswith("not champion: accuracy 0.3333 is worse than the champion's 1.0000 on the same 30")
    present = champion(tracking, "colours")
    assert present is not None
    assert present.number == 1


@pytest.mark.usefixtures("registered", "command")
def test_the_champion_is_scored_anew_on_other_data(
    weights: Weights, tracking: Tracking, run_id: str, tmp_path: Path
) -> None:
    other = coloured(tmp_path, COLOURS, per_class=8, seed=500)
    claimed = {"loss": 0.1, "accuracy": 0.75}
    checkpoint = other.checkpoint(weights, claimed)
    _, decision = register_checkpoint(tracking, checkpoint, other.data, run_id=run_id, name="colours")
    assert decision == Decision(
        promote=False, reason="accuracy 0.7500 is worse than the champion's 1.0000 on the same 12 images"
    )


@pytest.mark.usefixtures("registered", "command")
def test_a_champion_of_other_classes_stays(weights: Weights, tracking: Tracking, run_id: str, tmp_path: Path) -> None:
    names = dict(zip(("blue", "green", "red"), COLOURS.values(), strict=True))
    other = coloured(tmp_path, names, per_class=8)
    checkpoint = other.checkpoint(weights, {"loss": 0.0, "accuracy": 1.0})
    _, decision = register_checkpoint(tracking, checkpoint, other.data, run_id=run_id, name="colours")
    assert decision == Decision(
        promote=False, reason="the champion models:/colours/1 tells other classes apart: register under another name"
    )


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("model", [[], ["--model", "models:/colours@champion"], ["--model", "models:/colours/1"]])
def test_predict_prints_the_classes_of_each_picture(
    command: Command, home: Path, tmp_path: Path, model: list[str]
) -> None:
    for name in ("lime", "scarlet"):
        picture(COLOURS[name], seed=9000).resize((90, 60)).save(tmp_path / f"[{name}].png")
    files = [tmp_path / "[lime].png", tmp_path / "[scarlet].png"]
    lines = command(predict, *files, *model, "--home", home)
    assert [lines[0], lines[4]] == [str(file) for file in files]
    for name, answers in (("lime", lines[1:4]), ("scarlet", lines[5:8])):
        pairs = [re.findall(r"^ *(\d+\.\d\d)%  (\w+)$", line)[0] for line in answers]
        shares, classes = zip(*pairs, strict=True)
        assert classes[0] == name
        assert sorted(classes) == sorted(COLOURS)
        assert [float(share) for share in shares] == sorted(map(float, shares), reverse=True)
        assert sum(map(float, shares)) == pytest.approx(100, abs=0.02)


@pytest.mark.usefixtures("registered")
def test_predict_prints_as_many_classes_as_asked_for(command: Command, home: Path, tmp_path: Path) -> None:
    picture(COLOURS["azure"], seed=1).save(tmp_path / "a.png")
    lines = command(predict, tmp_path / "a.png", "--home", home, "--top", 1)
    assert [line.split()[-1] for line in lines] == [str(tmp_path / "a.png"), "azure"]


CHAMPION = ("models:/colours@champion",)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("target", [("{run}",), ("{run}", "--step", 40), CHAMPION], ids=str)
def test_evaluate_is_what_one_computes_by_hand(
    command: Command, run_folder: Path, colours: Coloured, weights: Weights, tmp_path: Path, target: tuple[object, ...]
) -> None:
    expected = hand_computed(colours, swapped(weights) if 40 in target else weights)
    file = tmp_path / "score.json"
    where, *step = target
    lines = command(evaluate, str(where).format(run=run_folder), *step, "--home", run_folder.parent, "--json", file)
    table = dict(re.split(r"  +", line, maxsplit=1) for line in lines)
    assert table == {
        "model": "models:/colours/1" if target == CHAMPION else f"{run_folder}, step {40 if step else STEP}",
        "data set": f"{colours.manifest.name}, split test",
        "images": "30",
        "loss": f"{expected['loss']:.4f}",
        "top-1": f"{expected['accuracy']:.2%}",
        "top-5": "100.00%",
    }
    score = json.loads(file.read_text())
    assert score["loss"] == pytest.approx(expected["loss"], rel=1e-3, abs=1e-6)
    assert {key: score[key] for key in ("count", "accuracy", "data_digest", "split")} == {
        "count": 30,
        "accuracy": expected["accuracy"],
        "data_digest": colours.manifest.digest,
        "split": "test",
    }


def test_evaluate_takes_another_split_and_crop(command: Command, run_folder: Path, colours: Coloured) -> None:
    lines = command(evaluate, run_folder, "--split", "train", "--set", "data.eval_resize=20")
    assert lines[1].split() == ["data", "set", f"{colours.manifest.name},", "split", "train"]


def refusal(command: Command, *arguments: object) -> str:
    with pytest.raises(UserError) as refused:
        command(*arguments)
    return str(refused.value)


@pytest.mark.usefixtures("registered")
def test_bad_input_to_predict(command: Command, home: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    picture(COLOURS["lime"], seed=1).save(good)
    bad.write_bytes(b"no image")
    at_home = ("--home", home)
    assert refusal(command, predict, tmp_path / "none.png", *at_home) == f"there is no image file {tmp_path}/none.png"
    assert refusal(command, predict, good, bad, *at_home) == f"{bad} does not decode: not an image (8 bytes)"
    assert refusal(command, predict, good, "--top", 0, *at_home) == "--top must be at least 1, got 0"
    assert "'digits'; it has: colours" in refusal(
        command, predict, good, "--model", "models:/digits@champion", *at_home
    )


def test_predict_without_a_champion(command: Command, tmp_path: Path) -> None:
    picture(COLOURS["lime"], seed=1).save(tmp_path / "a.png")
    line = refusal(command, predict, tmp_path / "a.png", "--home", tmp_path / "runs")
    assert line.startswith(f"MLflow at sqlite:///{tmp_path}/runs/mlflow.db has no champion: ")


@pytest.mark.usefixtures("registered")
def test_bad_input_to_evaluate(command: Command, run_folder: Path, home: Path, tmp_path: Path) -> None:
    names = dict(zip(("azure", "green", "scarlet"), COLOURS.values(), strict=True))
    other = coloured(tmp_path / "other", names, per_class=8)
    (tmp_path / "empty").mkdir()
    model = ("models:/colours@champion", "--home", home)
    assert refusal(command, evaluate, tmp_path / "none") == f"there is no folder {tmp_path}/none"
    assert refusal(command, evaluate, tmp_path / "empty").startswith(f"{tmp_path}/empty holds no checkpoint: ")
    assert refusal(command, evaluate, run_folder, "--step", 7) == (
        f"{run_folder}: checkpoint of step 7 is missing or incomplete"
    )
    assert "has no split 'val': it has train, test" in refusal(command, evaluate, run_folder, "--split", "val")
    differ = f"knows 3 classes, data set {other.manifest.name} has 3 and not the same; 'lime' is 'green' there"
    assert differ in refusal(command, evaluate, run_folder, "--data", other.store.uri)
    assert differ in refusal(command, evaluate, *model, "--data", other.store.uri)
    assert refusal(command, evaluate, run_folder, "--set", "optim.momentum=0.5") == (
        "--set optim.momentum: evaluate.py takes data.image_size and data.eval_resize only"
    )
    assert refusal(command, evaluate, *model, "--set", "data.image_size=20") == (
        "--set data.image_size: models:/colours/1 was exported for 16x16 pixels"
    )
    assert refusal(command, evaluate, *model, "--step", 3).startswith("--step is for a run's folder")


def test_bad_input_to_register(
    command: Command, run_folder: Path, colours: Coloured, weights: Weights, tmp_path: Path
) -> None:
    other = coloured(tmp_path / "other", COLOURS, per_class=8, seed=70)
    assert refusal(command, register, run_folder) == (
        f"the recipe of {run_folder} has no run.register_as: name the model with --name"
    )
    assert refusal(command, register, run_folder, "--name", "x", "--data", other.store.uri) == (
        f"checkpoint {STEP} was trained on data set {colours.manifest.name}, {other.store.uri} holds "
        f"{other.manifest.name}: name the place of the former with --data"
    )
    orphan = RunFolder(LocalStore(uri=str(tmp_path / "orphan")))
    orphan.write(colours.checkpoint(weights, {"loss": 0.0, "accuracy": np.float64(1.0)}), keep_best=1)
    assert refusal(command, register, tmp_path / "orphan", "--name", "x") == (
        f"{tmp_path}/orphan has no run.json: without its MLflow run it cannot be registered"
    )
