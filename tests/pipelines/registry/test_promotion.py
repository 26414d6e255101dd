"""Versions before the gate: sixteen at once, killed at every step, rolled back; the alias is never on other bytes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from infra.errors import UserError
from infra.registry.champion import champion, roll_back, settle
from infra.registry.exported_program import file_sha256s
from infra.registry.gate import Decision, Rule, Score
from infra.registry.version import FILES_TAG, Version, find_version
from infra.registry.versions import Candidate, load, register
from infra.tracking.client import Tracking, connect, resolve_tracking
from pipelines.evaluation.predictions import Predictions
from pipelines.evaluation.scoring import EvalData
from pipelines.registry.promotion import PREDICTIONS, SPLIT_TAG, challenge
from tests.mlflow_server import a_free_port, serve_mlflow
from tests.pipelines.conftest import Coloured
from tests.processes import KILLED, exit_codes, kill_at

IMAGES = 2000
NAME = "colours"


class Classifier(nn.Module):
    """Answers by its bias: enough to be exported and told from its siblings."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.arange(3.0) * number / 10, requires_grad=False)

    def forward(self, images_NHWC: Tensor) -> Tensor:
        probabilities: Tensor = (images_NHWC.float().mean((1, 2)) / 255 + self.bias).softmax(1)
        return probabilities


def answers(right: int) -> Predictions:
    """To two thousand images, of which the first `right` are answered right."""
    label = np.zeros(IMAGES, np.int32)
    return Predictions(
        id=np.arange(IMAGES),
        label=label,
        predicted=np.where(np.arange(IMAGES) < right, 0, 1).astype(np.int32),
        probability=np.full(IMAGES, 0.9, np.float32),
        label_probability=np.full(IMAGES, 0.9, np.float32),
        top5=np.ones(IMAGES, dtype=bool),
    )


def candidate(run_id: str, data: EvalData, number: int, found: Predictions) -> Candidate:
    right, count = int(found.correct.sum()), len(found)
    return Candidate(
        name=NAME,
        run_id=run_id,
        step=number,
        module=Classifier(number),
        example=np.zeros((2, 16, 16, 3), np.uint8),
        score=Score(accuracy=right / count, loss=0.1, count=count, data_digest=data.manifest.digest),
        checkpoint_sha256=f"{number:064d}",
        recipe_digest="r" * 64,
        metadata={"class_names": list(data.manifest.class_names), **data.crop.shown},
        tags={SPLIT_TAG: data.split},
        files={PREDICTIONS: found.to_parquet()},
    )


def offer(tracking: Tracking, data: EvalData, run_id: str, number: int, point: str = "") -> tuple[Version, Decision]:
    """Register a model that is right 20 times more for each number, and let the gate decide."""
    torch.set_num_threads(1)
    if point:
        kill_at(point)
    found = answers(1000 + 20 * number)
    version = register(tracking, candidate(run_id, data, number, found))
    return version, challenge(tracking, version, found, data, rule=Rule(0.01))


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("mlflow")
    connect(Tracking(uri=f"sqlite:///{home / 'mlflow.db'}"))
    return home / "mlflow.db"


@pytest.fixture(params=["sqlite", "server"])
def anywhere(request: pytest.FixtureRequest, tracking: Tracking, tmp_path: Path) -> Iterator[Tracking]:
    """The same database: opened by every process, or behind one real server."""
    if request.param == "sqlite":
        yield tracking
        return
    with serve_mlflow(tmp_path, a_free_port()) as url:
        yield Tracking(uri=url)


@pytest.fixture
def tracking(blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", raising=False)
    shutil.copy(blank, tmp_path / "mlflow.db")
    return resolve_tracking(tmp_path)


def new_run(tracking: Tracking) -> str:
    client = connect(tracking)
    experiment = client.create_experiment("training", artifact_location=tracking.artifact_location)
    return str(client.create_run(experiment).info.run_id)


def numbered(tracking: Tracking, number: int) -> Version:
    found = find_version(connect(tracking), NAME, number)
    assert found is not None
    return found


def assert_bytes_are_those_registered(tracking: Tracking, version: Version, folder: Path) -> None:
    """Downloaded and hashed here, not by the code under test."""
    import mlflow.artifacts

    source = connect(tracking).get_model_version_download_uri(version.name, str(version.number))
    found = mlflow.artifacts.download_artifacts(source, dst_path=str(folder), tracking_uri=tracking.uri)
    hashes = {path: digest for path, digest in file_sha256s(Path(found)).items() if path != "registered_model_meta"}
    assert hashes == json.loads(version.tags[FILES_TAG])


@pytest.mark.faults
def test_sixteen_at_once(anywhere: Tracking, colours: Coloured, tmp_path: Path) -> None:
    run_id = new_run(anywhere)
    assert exit_codes(offer, [(anywhere, colours.data, run_id, number) for number in range(1, 17)]) == [0] * 16
    client = connect(anywhere)
    versions = client.search_model_versions(f"name = '{NAME}'")
    assert sorted(int(version.version) for version in versions) == list(range(1, 17))
    assert len({version.tags["checkpoint_sha256"] for version in versions}) == 16
    assert all(version.tags["gate_decision"] in ("promote", "keep") for version in versions)

    best = champion(anywhere, NAME)
    assert best is not None
    assert best.tags["checkpoint_sha256"] == f"{16:064d}"  # the most accurate, whoever came when: no promotion was lost
    assert best.score.accuracy == 0.66
    standing = settle(anywhere, NAME)
    assert standing.finished is None
    assert [move.over for move in standing.moves] == [None, *(move.version for move in standing.moves[:-1])]
    accuracies = [numbered(anywhere, move.version).score.accuracy for move in standing.moves]
    assert accuracies == sorted(accuracies)
    assert_bytes_are_those_registered(anywhere, best, tmp_path)

    images = np.full((1, 16, 16, 3), 7, np.uint8)
    newest = load(anywhere, f"models:/{NAME}@champion")
    assert newest.version.number == best.number
    if len(standing.moves) > 1:
        out, former = roll_back(anywhere, NAME)
        assert (out, former.number) == (best.number, standing.moves[-2].version)
        served = load(anywhere, f"models:/{NAME}@champion")
        assert served.version.number == former.number
        assert_bytes_are_those_registered(anywhere, former, tmp_path)
        with torch.inference_mode():
            expected = Classifier(int(former.tags["checkpoint_step"]))(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(served.predict(images), expected, atol=1e-6)


POINTS = [
    "create_model_version before 1",
    "create_model_version after 1",
    "set_model_version_tag before 1",
    "set_model_version_tag before 5",
    "log_param before 1",
    "set_registered_model_alias before 1",
    "set_registered_model_alias after 1",
]


@pytest.mark.faults
def test_killed_between_any_two_steps_the_same_command_finishes(tracking: Tracking, colours: Coloured) -> None:
    """Versions 1, 2, … of one model, each killed at another point and begun again."""
    run_id = new_run(tracking)
    for number, point in enumerate(POINTS, start=1):
        job = (tracking, colours.data, run_id, number)
        assert exit_codes(offer, [(*job, point)]) == [KILLED], point
        present = champion(tracking, NAME)
        assert (present.number if present else 0) == (number if point.endswith("alias after 1") else number - 1)
        assert exit_codes(offer, [job]) == [0]
        present = champion(tracking, NAME)
        assert present is not None
        assert (present.number, present.tags["checkpoint_step"]) == (number, str(number)), point
        assert present.tags["gate_decision"] == "promote"
        assert "gate_reason" in present.tags
    assert [move.version for move in settle(tracking, NAME).moves] == list(range(1, len(POINTS) + 1))


def test_what_was_rolled_back_does_not_come_in_again(tracking: Tracking, colours: Coloured) -> None:
    run_id = new_run(tracking)
    for number in (1, 2):
        offer(tracking, colours.data, run_id, number)
    assert roll_back(tracking, NAME)[1].number == 1
    version, decision = offer(tracking, colours.data, run_id, 2)
    assert (version.number, decision.promote) == (2, False)
    assert decision.reason.startswith("it was rolled back at 20")
    assert "; to promote it anyway: " in decision.reason
    assert "pipelines/register.py --promote colours 2 --home " in decision.reason
    third, decision = offer(tracking, colours.data, run_id, 3)
    assert decision.promote
    present = champion(tracking, NAME)
    assert present is not None
    assert present.number == third.number


def test_the_decision_is_in_the_tags(tracking: Tracking, colours: Coloured) -> None:
    run_id = new_run(tracking)
    _, first = offer(tracking, colours.data, run_id, 2)
    assert first == Decision(promote=True, reason="there is no champion yet", margin=0.01)
    version, decision = offer(tracking, colours.data, run_id, 1)
    assert not decision.promote
    tags = numbered(tracking, version.number).tags
    assert tags["gate_champion"] == "models:/colours/1"
    assert (tags["gate_wins"], tags["gate_losses"], tags["gate_images"]) == ("0", "20", str(IMAGES))
    assert (tags["gate_decision"], tags["gate_margin"]) == ("keep", "0.01")
    assert float(tags["gate_difference"]) == pytest.approx(-0.01)
    assert float(tags["gate_p_value"]) == pytest.approx(2 * 0.5**20, rel=1e-5)
    assert tags["gate_reason"].startswith("less accurate than models:/colours/1: -1.00 points on 2,000 test images (0 ")
    assert tags["gate_time"].startswith("20")
    assert Decision.from_tags(tags) == decision


def test_a_deleted_log_stops_the_gate_before_it_writes(tracking: Tracking, colours: Coloured) -> None:
    """The run in MLflow that holds the log of champions: the verdict would be there and the alias where it was."""
    run_id = new_run(tracking)
    offer(tracking, colours.data, run_id, 1)
    client = connect(tracking)
    found = answers(1100)
    challenger = register(tracking, candidate(run_id, colours.data, 5, found))
    client.delete_run(client.get_registered_model(NAME).tags["champion_log"])
    with pytest.raises(UserError, match="was deleted: `mlflow runs restore --run-id"):
        challenge(tracking, challenger, found, colours.data, rule=Rule(0.01))
    assert "gate_decision" not in numbered(tracking, challenger.number).tags
    present = champion(tracking, NAME)
    assert present is not None
    assert present.number == 1


def test_a_comparison_is_of_the_same_images(tracking: Tracking, colours: Coloured) -> None:
    """A champion of another split is scored on the challenger's."""
    run_id = new_run(tracking)
    offer(tracking, colours.data, run_id, 1)
    other = dataclasses.replace(colours.data, split="train")
    rows = colours.columns("train")
    perfect = Predictions(
        id=rows["id"],
        label=rows["label"],
        predicted=rows["label"],
        probability=np.ones(len(rows["id"]), np.float32),
        label_probability=np.ones(len(rows["id"]), np.float32),
        top5=np.ones(len(rows["id"]), dtype=bool),
    )
    challenger = register(tracking, candidate(run_id, other, 9, perfect))
    decision = challenge(tracking, challenger, perfect, other, rule=Rule(1.0))
    assert decision.promote
    assert decision.paired is not None
    assert decision.paired.count == 30  # not the two thousand that the champion was registered with
