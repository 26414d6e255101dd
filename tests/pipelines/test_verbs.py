"""evaluate, register and predict as a user calls them, on a run's folder that holds a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from infra.errors import UserError
from infra.proportions import Paired
from infra.registry.champion import champion
from infra.registry.gate import Decision
from infra.registry.versions import Version, load
from infra.storage import LocalStore
from infra.tracking.client import Tracking, resolve_tracking
from infra.tracking.tracker import RunInfo, Tracker
from pipelines import evaluate, predict, register
from pipelines.checkpoint import RUN, RunFolder
from pipelines.evaluation.model_source import RunModel
from pipelines.evaluation.models import Target
from pipelines.evaluation.predictions import Predictions
from pipelines.evaluation.result import Evaluated
from pipelines.evaluation.scoring import SplitScore
from pipelines.registry.registration import register_checkpoint
from resnet_core.config import AugmentConfig, ModelConfig
from resnet_core.models import build_model
from tests.pipelines.conftest import COLOURS, SIZE, STEP, Coloured, coloured, hand_computed, picture

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
    monkeypatch.setattr("infra.cluster.connect", lambda **_: None)
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
    assert decision == Decision(promote=True, reason="there is no champion yet", margin=0.01)
    present = champion(tracking, "colours")
    assert present is not None
    assert (present.number, present.decision) == (version.number, decision)
    assert version.uri == "models:/colours/1"
    assert (version.score.accuracy, version.score.count) == (1.0, 30)
    assert version.score.data_digest == colours.manifest.digest
    assert version.score.loss == pytest.approx(expected["loss"], rel=1e-3, abs=1e-6)
    assert load(tracking, version.uri).metadata == {
        "class_names": ["azure", "lime", "scarlet"],
        "image_size": SIZE,
        "eval_resize": SIZE,
        "interpolation": "bilinear",
        "decoder": "fast",
        "pixels": "displayed",
        "data_uri": colours.store.uri,
        "data_digest": colours.manifest.digest,
        "split": "test",
        "recipe": "colours",
    }


@pytest.mark.usefixtures("registered")
def test_register_again_is_the_same_version(command: Command, run_folder: Path) -> None:
    lines = command(register, run_folder, "--name", "colours")
    assert lines[0] == f"models:/colours/1: checkpoint {STEP}, accuracy 1.0000"
    assert lines[1] == "champion: there is no champion yet"  # as it was decided then


@pytest.mark.usefixtures("registered")
def test_a_worse_version_leaves_the_alias(command: Command, run_folder: Path, tracking: Tracking) -> None:
    """The newest checkpoint was not scored in training: it is now."""
    lines = command(register, run_folder, "--name", "colours", "--step", 40)
    assert lines[0] == "models:/colours/2: checkpoint 40, accuracy 0.3333"
    assert lines[1].startswith(
        "registered as version 2, not champion: less accurate than models:/colours/1: -66.67 points on 30 test images "
        "(0 images only the new model gets right, 20 only models:/colours/1; p = 1.9e-06)"
    )
    present = champion(tracking, "colours")
    assert present is not None
    assert present.number == 1


@pytest.mark.usefixtures("registered", "command")
def test_the_champion_is_scored_anew_on_other_data(
    weights: Weights, tracking: Tracking, run_id: str, tmp_path: Path
) -> None:
    other = coloured(tmp_path, COLOURS, per_class=8, seed=500)
    checkpoint = other.checkpoint(swapped(weights), {"loss": 0.0, "accuracy": 1.0})  # what it claims is not believed
    _, decision = register_checkpoint(tracking, checkpoint, other.data, run_id=run_id, name="colours")
    assert not decision.promote
    assert decision.paired == Paired(wins=0, losses=8, count=12)
    assert decision.champion == "models:/colours/1"


@pytest.mark.usefixtures("registered", "command")
def test_a_champion_of_other_classes_stays(weights: Weights, tracking: Tracking, run_id: str, tmp_path: Path) -> None:
    names = dict(zip(("blue", "green", "red"), COLOURS.values(), strict=True))
    other = coloured(tmp_path, names, per_class=8)
    checkpoint = other.checkpoint(weights, {"loss": 0.0, "accuracy": 1.0})
    _, decision = register_checkpoint(tracking, checkpoint, other.data, run_id=run_id, name="colours")
    assert decision == Decision(
        promote=False,
        reason="the champion models:/colours/1 has other classes: register under another name",
        champion="models:/colours/1",
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


def test_promote_roll_back_and_history(command: Command, colours: Coloured, weights: Weights, tmp_path: Path) -> None:
    tracking = resolve_tracking(tmp_path)
    tracker = Tracker.start(tracking, RunInfo(experiment="colours", name="demo"), warn=print)
    assert tracker.finish("FINISHED", timeout_s=30)
    for step in (30, 40):
        checkpoint = colours.checkpoint(swapped(weights) if step == 40 else weights, {}, step=step)
        register_checkpoint(tracking, checkpoint, colours.data, run_id=tracker.run_id, name="shades")
    at_home = ("--home", tmp_path)
    assert command(register, "--promote", "shades", 2, *at_home) == ["champion: models:/shades/2"]
    assert load(tracking, "models:/shades@champion").version.number == 2
    assert command(register, "--rollback", "shades", *at_home) == ["champion: models:/shades/1, in place of version 2"]
    assert load(tracking, "models:/shades@champion").predict(colours.columns("test")["image"]).shape == (30, 3)
    rows = [re.split("  +", line)[1:] for line in command(register, "--history", "shades", *at_home)]
    assert rows == [
        ["champion", "over", "by"],
        ["version 1", "none", "gate"],
        ["version 2", "version 1", "by hand"],
        ["version 1", "version 2", "rollback"],
    ]
    assert refusal(command, register, "--rollback", "shades", *at_home) == (
        "'shades' has no champion before the present one: nothing to roll back to"
    )


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
    rows = [re.split(r"  +", line) for line in lines[: lines.index("")]]
    table, intervals = {row[0]: row[1] for row in rows}, {row[0]: row[2] for row in rows if len(row) > 2}
    assert re.fullmatch(r"\d+\.\d\d% expected error", table.pop("calibration"))
    mean = "33.33%" if 40 in target else "100.00%"  # swapped: only scarlet is right
    assert table.pop("balanced") == f"{mean} mean accuracy of the classes"
    assert (table.pop("macro F1"), intervals.pop("macro F1")) == (mean, f"(precision {mean}, recall {mean})")
    assert set(intervals) == {"loss", "top-1", "top-5", "calibration"}
    assert intervals["top-5"] == "(95 %: 88.65% to 100.00%)"
    assert intervals["top-1"] == ("(95 %: 19.23% to 51.22%)" if 40 in target else "(95 %: 88.65% to 100.00%)")
    assert table == {
        "model": "models:/colours/1" if target == CHAMPION else f"{run_folder}, step {40 if step else STEP}",
        "data set": f"{colours.manifest.name}, split test",
        "images": "30",
        "views": f"centre crop, {SIZE}x{SIZE} of a shorter side of {SIZE}",
        "pixels": "bilinear, fast",
        "loss": f"{expected['loss']:.4f}",
        "top-1": f"{expected['accuracy']:.2%}",
        "top-5": "100.00%",
    }
    wrong = 40 in target  # calls azure lime, and lime azure
    shares = {"azure": 0.0, "lime": 0.0, "scarlet": 1.0} if wrong else dict.fromkeys(COLOURS, 1.0)
    wilson = {0.0: "0.00% to 27.75%", 1.0: "72.25% to 100.00%"}
    first = lines.index("") + 1
    by_class = [re.split("  +", line) for line in lines[first : first + 4]]
    expected_rows = [
        [name, "10", f"{share:.2%}", wilson[share], f"{share:.2%}", f"{share:.2%}"] for name, share in shares.items()
    ]
    assert by_class == [["class", "images", "top-1", "95 %", "precision", "F1"], *expected_rows]
    confused = [re.split("  +", line) for line in lines[first + 5 :]]
    swaps = [["azure → lime", "10", "100.00%"], ["lime → azure", "10", "100.00%"]]
    assert confused == ([["most confused", "images", "of the class"], *swaps] if wrong else [])
    score = json.loads(file.read_text())
    assert score["class_accuracy"] == shares
    assert score["class_counts"] == dict.fromkeys(COLOURS, 10)
    assert 0 <= score["calibration_error"] <= 1
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


def scored(command: Command, folder: Path, *arguments: object) -> dict[str, Any]:
    command(evaluate, *arguments, "--json", folder / "score.json")
    found: dict[str, Any] = json.loads((folder / "score.json").read_text())
    return found


@pytest.mark.usefixtures("registered")
def test_evaluate_shows_several_views(command: Command, run_folder: Path, home: Path, tmp_path: Path) -> None:
    resize = ("--set", f"data.eval_resize={SIZE + 4}")
    ten = scored(command, tmp_path, run_folder, "--views", "ten_crop", *resize)
    exported = scored(command, tmp_path, CHAMPION[0], "--home", home, "--views", "ten_crop", *resize)
    assert (ten["count"], ten["views"], ten["image_size"], ten["eval_resize"]) == (30, "ten_crop", SIZE, SIZE + 4)
    assert exported["loss"] == pytest.approx(ten["loss"], rel=1e-3, abs=1e-6)
    dense = scored(command, tmp_path, run_folder, "--views", "multi_scale", "--scales", "16,24")
    assert (dense["scales"], dense["accuracy"]) == ([16, 24], 1.0)
    larger = scored(command, tmp_path, run_folder, "--size", 2 * SIZE)
    assert (larger["image_size"], larger["eval_resize"]) == (2 * SIZE, 2 * SIZE)
    lines = command(evaluate, run_folder, "--views", "multi_scale_flip")
    assert lines[3] == (
        "views        whole images with a shorter side of 16, 18, 27, 34, 46, at every position of a 16x16 crop, "
        "and their mirror images"
    )


def test_of_many_classes_those_with_the_lowest_accuracy_are_shown(
    command: Command, colours: Coloured, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = np.repeat(np.arange(1, 30, dtype=np.int32), 10)
    right = np.arange(290) % 10 < label % 10
    surety = np.full(290, 0.5, np.float32)
    answers = Predictions(
        id=np.arange(290),
        label=label,
        predicted=np.where(right, label, 0).astype(np.int32),
        probability=surety,
        label_probability=surety,
        top5=np.ones(290, dtype=bool),
    )
    score = SplitScore(
        count=290,
        data_digest="",
        loss=1.0,
        accuracy=0.5,
        top5_accuracy=1.0,
        calibration_error=0.1,
        class_counts=(0, *[10] * 29),
        class_correct=(0, *(number % 10 for number in range(1, 30))),
        class_predicted=(0, *[10] * 29),
        macro_precision=0.5,
        macro_recall=0.5,
        balanced_accuracy=0.5,
        macro_f1=0.5,
    )
    names = tuple(f"class{number}" for number in range(30))
    model = RunModel.of(colours.checkpoint({}, {}))  # which nobody opens
    target = Target(description="m", model=model, class_names=names, data=colours.data)
    monkeypatch.setattr("pipelines.evaluation.outputs.open_targets", lambda request, warn: [target])
    found = Evaluated(score=score, predictions=answers)
    monkeypatch.setattr("pipelines.evaluation.task.evaluate", lambda choice, model, data: found)
    title, *rows = [line.split() for line in command(evaluate, "m")[12:]]
    assert title == ["lowest", "20", "of", "30", "classes", "images", "top-1", "95", "%", "precision", "F1"]
    assert [row[:3] for row in rows[:3]] == [
        ["class10", "10", "0.00%"],
        ["class20", "10", "0.00%"],
        ["class1", "10", "10.00%"],
    ]
    assert rows[20] == []
    assert rows[22][:4] == ["class10", "→", "class0", "10"]


@pytest.mark.usefixtures("registered")
def test_several_models_are_an_ensemble(
    command: Command, run_folder: Path, home: Path, colours: Coloured, weights: Weights, tmp_path: Path
) -> None:
    both = scored(command, tmp_path, run_folder, "--step", STEP, "--step", 40, "--ensemble")
    assert both["target"] == f"ensemble of {run_folder}, step {STEP}; {run_folder}, step 40"
    # of azure one says what the other says of lime: the mean is as sure of one as of the other, and right of scarlet
    assert both["class_accuracy"]["scarlet"] == 1.0
    assert both["loss"] == pytest.approx(mean_loss(colours, [weights, swapped(weights)]), rel=1e-3)
    mixed = scored(command, tmp_path, run_folder, CHAMPION[0], "--home", home, "--ensemble")
    assert mixed["loss"] == pytest.approx(hand_computed(colours, weights)["loss"], rel=1e-3, abs=1e-6)


def mean_loss(colours: Coloured, members: list[Weights]) -> float:
    """Of the mean of the members' probabilities, one image at a time."""
    networks = []
    for member in members:
        networks.append(build_model(ModelConfig(name="resnet20", num_classes=3)).eval())
        networks[-1].load_state_dict(member)
    rows, augment = colours.columns("test"), AugmentConfig()
    loss = 0.0
    with torch.inference_mode():
        for image, label in zip(rows["image"], rows["label"], strict=True):
            pixels = (torch.tensor(image) / 255 - torch.tensor(augment.mean)) / torch.tensor(augment.std)
            found = [network(pixels.permute(2, 0, 1)[None])[0].double().softmax(0) for network in networks]
            loss -= float(torch.stack(found).mean(0)[label].log())
    return loss / len(rows["label"])


@pytest.mark.usefixtures("registered")
def test_two_models_are_compared(command: Command, run_folder: Path, home: Path, tmp_path: Path) -> None:
    """The second calls azure lime and lime azure; its size may be another's, its images may not."""
    outputs = ("--json", tmp_path / "c.json", "--predictions", tmp_path / "p.parquet", "--plots", tmp_path / "plots")
    lines = command(evaluate, CHAMPION[0], run_folder, "--step", 40, "--home", home, *outputs)
    table = dict(re.split(r"  +", line, maxsplit=1) for line in lines[: lines.index("")])
    assert (table["A"], table["B"]) == ("models:/colours/1", f"{run_folder}, step 40")
    assert table["top-1 of A"] == "100.00%  (95 %: 88.65% to 100.00%)"
    assert table["top-1 of B"] == "33.33%  (95 %: 19.23% to 51.22%)"
    assert table["difference"].startswith("-66.67 points  (95 %: -80.77 to -47.75; ")
    assert table["difference"].endswith("McNemar's exact p = 1.9e-06)")
    assert table["flips"] == "only B is right on 0, only A on 20; both predict the same class on 33.33%"
    assert table["verdict"] == "A is better"
    rows = [re.split("  +", line) for line in lines[lines.index("") + 1 :]]
    assert rows == [
        ["class", "images", "change", "only B", "only A", "adjusted p"],
        ["azure", "10", "-100.00 points", "0", "10", "0.0029", "worse"],
        ["lime", "10", "-100.00 points", "0", "10", "0.0029", "worse"],
        ["scarlet", "10", "+0.00 points", "0", "0", "1"],
    ]
    found = json.loads((tmp_path / "c.json").read_text())
    assert (found["wins"], found["losses"], found["count"], found["agreement"]) == (0, 20, 30, pytest.approx(1 / 3))
    assert found["p_value"] == pytest.approx(2 * 0.5**20)
    assert found["old"]["accuracy"] - found["new"]["accuracy"] == pytest.approx(2 / 3)
    answers = pq.read_table(tmp_path / "p.parquet").to_pydict()
    assert answers["id"] == list(range(30, 60))
    assert answers["old_predicted"] == answers["label"]
    assert answers["new_predicted"] == [[1, 0, 2][label] for label in answers["label"]]
    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == ["classes.png", "flips.png"]
    two_steps = command(evaluate, run_folder, "--step", STEP, "--step", 40)
    assert two_steps[2:] == lines[2:]


def test_one_model_s_answers_and_plots(command: Command, run_folder: Path, colours: Coloured, tmp_path: Path) -> None:
    plots, answers = tmp_path / "deep" / "plots", tmp_path / "p.parquet"
    command(evaluate, run_folder, "--step", 40, "--predictions", answers, "--plots", plots)
    assert sorted(file.name for file in plots.iterdir()) == [
        "classes.png",
        "confusion.png",
        "mistakes.png",
        "reliability.png",
    ]
    table = pq.read_table(answers)
    assert table.column_names == ["id", "label", "predicted", "probability", "label_probability", "top5"]
    assert table["label"].to_pylist() == colours.columns("test")["label"].tolist()
    assert min(table["probability"].to_pylist()) >= 1 / 3


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
    assert refusal(command, predict, good, "--top", 0, *at_home) == "--top must be at least 1, got 0"
    assert "'digits'; it has: colours" in refusal(
        command, predict, good, "--model", "models:/digits@champion", *at_home
    )


@pytest.mark.usefixtures("registered")
def test_predict_names_what_does_not_decode_and_classifies_the_others(
    predicted: Callable[..., tuple[int, list[str], list[str]]], home: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    picture(COLOURS["lime"], seed=1).save(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    status, lines, said = predicted(folder, "--home", home, "--top", 1)
    assert (status, lines[0], lines[1].split()[1]) == (0, f"{folder}/good.png", "lime")
    left_out = f"left out: 1 file of other kinds (1 .txt) below {folder}"
    assert (len(lines), said) == (2, [left_out, f"{folder}/bad.png does not decode: not an image (8 bytes)"])
    named = (folder / "bad.png", folder / "good.png")
    status, lines, said = predicted(*named, "--home", home, "--top", 1)
    assert (status, lines[0]) == (2, f"{folder}/good.png")
    assert said == [f"error: {folder}/bad.png does not decode: not an image (8 bytes)"]


@pytest.fixture
def predicted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str], list[str]]]:
    """The status of predict, its lines on stdout, and those on stderr but for the one that says which model answers."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", raising=False)

    def run(*arguments: object) -> tuple[int, list[str], list[str]]:
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
        status = predict.main()
        said = capsys.readouterr()
        told = said.err.splitlines()
        told.remove("model: models:/colours/1 (champion)")
        return status, said.out.splitlines(), told

    return run


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
    differ = f"are not the 3 of data set {other.manifest.name}: 'lime' is 'green' in the data set; give a data set"
    assert differ in refusal(command, evaluate, run_folder, "--data", other.store.uri)
    assert differ in refusal(command, evaluate, *model, "--data", other.store.uri)
    assert refusal(command, evaluate, run_folder, "--set", "optim.momentum=0.5") == (
        "--set optim.momentum: evaluate.py takes data.image_size, data.eval_resize, data.interpolation, "
        "data.decoder only"
    )
    assert refusal(command, evaluate, *model, "--set", "data.image_size=20") == (
        "--set data.image_size: models:/colours/1 was exported for 16x16 pixels"
    )
    assert refusal(command, evaluate, *model, "--step", 3).startswith("--step is for a run's folder")
    assert refusal(command, evaluate, run_folder, run_folder, run_folder) == (
        "3 models: name one to score, two to compare, or score all as one with --ensemble"
    )
    missing = ("--plots", run_folder / "run.json")
    assert refusal(command, evaluate, run_folder, *missing) == (
        f"--plots {run_folder}/run.json: cannot be written: File exists"
    )
    assert refusal(command, evaluate, run_folder, "--predictions", tmp_path / "no" / "p.parquet") == (
        f"--predictions {tmp_path}/no/p.parquet: cannot be written: No such file or directory"
    )


@pytest.mark.usefixtures("registered")
def test_views_that_cannot_be_shown(command: Command, run_folder: Path, home: Path, tmp_path: Path) -> None:
    model = ("models:/colours@champion", "--home", home)
    exported = "models:/colours/1 was exported for 16x16 pixels"
    assert refusal(command, evaluate, *model, "--size", 20) == f"--size: {exported}"
    assert refusal(command, evaluate, *model, "--views", "multi_scale") == (
        f"--views multi_scale: {exported}: give its run's folder instead"
    )
    assert refusal(command, evaluate, run_folder, "--views", "ten_crop") == (
        f"--views ten_crop: {run_folder}, step {STEP} takes crops of 16 pixels from images of 16, so all would be the "
        "same: give a larger --set data.eval_resize"
    )
    assert refusal(command, evaluate, run_folder, "--scales", "16,24") == (
        "--scales is for --views multi_scale and multi_scale_flip, not centre"
    )
    dense = (run_folder, "--views", "multi_scale", "--scales")
    assert refusal(command, evaluate, *dense, "16,x") == (
        "--scales takes numbers of pixels such as 224,256,384, got '16,x'"
    )
    assert refusal(command, evaluate, *dense, "0,16") == "--scales must be at least 1, got 0"
    assert refusal(command, evaluate, run_folder, "--size", 0) == "--size must be at least 1, got 0"
    assert refusal(command, evaluate, run_folder, "--size", 20, "--set", "data.image_size=20") == (
        "--size and --set data.image_size set the same value: give only one of them"
    )


@pytest.mark.usefixtures("registered")
def test_models_that_make_no_ensemble_or_comparison(
    command: Command, run_folder: Path, home: Path, colours: Coloured, weights: Weights, tmp_path: Path
) -> None:
    larger = dataclasses.replace(
        colours.checkpoint(weights, {}), recipe={**colours.checkpoint(weights, {}).recipe, "data.image_size": 24}
    )
    RunFolder(LocalStore(uri=str(tmp_path / "larger"))).write(larger, keep_best=1)
    assert refusal(command, evaluate, run_folder, tmp_path / "larger", "--ensemble") == (
        f"data.image_size is 16 for {run_folder}, step {STEP}, 24 for {tmp_path}/larger, step {STEP}: "
        "set it for all of them with --set"
    )
    same = ("--set", "data.image_size=16", "--ensemble")
    assert scored(command, tmp_path, run_folder, tmp_path / "larger", *same)["count"] == 30
    elsewhere = coloured(tmp_path / "elsewhere", COLOURS, per_class=8, seed=50)
    moved = {**larger.recipe, "data.image_size": 16, "data.uri": elsewhere.store.uri}
    other = dataclasses.replace(larger, recipe=moved, data_digest=elsewhere.manifest.digest)
    RunFolder(LocalStore(uri=str(tmp_path / "other"))).write(other, keep_best=1)
    assert refusal(command, evaluate, run_folder, tmp_path / "other").endswith(
        f"were evaluated on split test of {colours.manifest.name} and split test of {elsewhere.manifest.name}: "
        "name one with --data and --split"
    )


def test_bad_input_to_register(
    command: Command, run_folder: Path, colours: Coloured, weights: Weights, tmp_path: Path
) -> None:
    other = coloured(tmp_path / "other", COLOURS, per_class=8, seed=70)
    assert refusal(command, register, run_folder) == (
        f"the recipe of {run_folder} has no run.register_as: name the model with --name"
    )
    assert refusal(command, register, run_folder, "--name", "x", "--data", other.store.uri) == (
        f"checkpoint {STEP} was trained on data set {colours.manifest.name}, but {other.store.uri} holds "
        f"{other.manifest.name}: give the place of the first one with --data"
    )
    assert refusal(command, register).startswith("name the folder of a run, or --rollback NAME, --promote NAME VERSION")
    assert refusal(command, register, run_folder, "--margin", 0) == "--margin must be above 0 and at most 1, got 0.0"
    home = tmp_path / "runs"
    assert refusal(command, register, "--rollback", "x", "--home", home).endswith("has no model 'x'")
    assert refusal(command, register, "--promote", "x", 1, "--home", home).endswith("has no model 'x'; it has: none")
    orphan = RunFolder(LocalStore(uri=str(tmp_path / "orphan")))
    orphan.write(colours.checkpoint(weights, {"loss": 0.0, "accuracy": np.float64(1.0)}), keep_best=1)
    assert refusal(command, register, tmp_path / "orphan", "--name", "x") == (
        f"{tmp_path}/orphan has no run.json: without its MLflow run it cannot be registered"
    )
