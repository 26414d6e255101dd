"""Multi-label runs on canvases of Fashion-MNIST items: trained, killed, registered with thresholds, and asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import average_precision_score

from infra.errors import UserError
from infra.registry.gate import Decision, Rule
from infra.registry.version import read_file
from infra.registry.versions import fetch, find
from infra.storage import LocalStore, open_store
from infra.tracking.tracker import resolve_tracking
from pipelines.checkpoint import RunFolder
from pipelines.config.prepare import PrepareConfig
from pipelines.config.recipe import Recipe, build_recipe
from pipelines.data.shards.manifest import MANIFEST, load_manifest
from pipelines.evaluation.label_predictions import LabelPredictions, resampled
from pipelines.evaluation.label_report import LabelComparisonReport, LabelReport
from pipelines.evaluation.models import Request
from pipelines.evaluation.outputs import report_on
from pipelines.evaluation.scoring import EvalData
from pipelines.evaluation.task import task_of
from pipelines.inference.batch_predict import predictions
from pipelines.registry.promotion import PREDICTIONS
from pipelines.serving.preprocessing import Preprocessing
from pipelines.training.driver import train
from tests.canvases import CLASSES, FASHION_MNIST, source
from tests.pipelines.conftest import written

pytestmark = pytest.mark.skipif(not FASHION_MNIST.exists(), reason="apt-get install dataset-fashion-mnist")


@pytest.fixture(scope="session")
def canvases(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    store = LocalStore(uri=str(tmp_path_factory.mktemp("canvases") / "data"))
    manifest = written(source(train=160, validation=60, test=80), store, PrepareConfig(min_shards=2))
    store.write(MANIFEST, manifest.to_json().encode())
    return store


@pytest.fixture
def recipe_of(canvases: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recipe]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def make(name: str, **settings: Any) -> Recipe:
        values = {key.replace("__", "."): value for key, value in settings.items()}
        return build_recipe(
            {},
            {
                "model.name": "resnet20", "model.depths": [1, 1, 1], "data.uri": canvases.uri, "data.image_size": 32,
                "data.eval_resize": 32, "data.ordered": True, "optim.loss": "bce", "optim.global_batch_size": 16,
                "schedule.length": 2, "run.home": str(tmp_path), "run.name": name, "run.num_workers": 0,
                "run.checkpoint_every_steps": 4, **values,
            },
        )  # fmt: skip

    return make


def folder_of(recipe: Recipe) -> RunFolder:
    return RunFolder(open_store(recipe.run.home).sub(recipe.run.name))


@pytest.mark.faults
@pytest.mark.usefixtures("ray_local")
def test_a_run_is_registered_with_its_thresholds_and_answers_by_them(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("whole", run__register_as="canvases", augment__mixup_alpha=0.2, optim__label_smoothing=0.1)
    outcome = train(recipe, Console(quiet=True))
    assert outcome.metric == "mean_average_precision" and outcome.champion
    tracking = resolve_tracking(recipe.run.home)
    version = find(tracking, outcome.model)
    kept = read_file(tracking, version, PREDICTIONS)
    assert kept is not None
    answers = LabelPredictions.from_parquet(kept)
    expected = average_precision_score(answers.label, answers.probability, average="macro")
    assert outcome.value == pytest.approx(expected, abs=1e-6)
    assert version.score.mean_average_precision == outcome.value
    files = fetch(tracking, outcome.model)
    best = folder_of(recipe).best(pytest.fail)
    assert best is not None and best.scored is not None
    thresholds = files.metadata["thresholds"]
    assert thresholds == best.scored["threshold"].tolist()
    target = Request(targets=(folder_of(recipe).store.uri,), split="validation", home=recipe.run.home)
    validated = report_on(target, False, Console(quiet=True))
    assert isinstance(validated, LabelReport)
    assert thresholds == pytest.approx(validated.evaluated.rates.threshold.tolist(), abs=0.01)  # in fp32
    both = report_on(replace(target, targets=(*target.targets, outcome.model), split=None), False, Console(quiet=True))
    assert isinstance(both, LabelComparisonReport)
    assert both.old.mean == pytest.approx(outcome.value, abs=1e-6) == both.new.mean  # the run and its version
    assert both.as_json()["old"]["macro_f1"] == both.as_json()["new"]["macro_f1"] > 0
    assert best.scored["count"].sum() > 60
    model, images = files.open(), np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    probabilities = model.predict(images)
    assert probabilities.sum(axis=1).max() != pytest.approx(1.0)  # a sigmoid for each class
    for row, answer in zip(probabilities, Preprocessing.of(files.metadata).answers(probabilities), strict=True):
        over = {CLASSES[place] for place in range(10) if row[place] >= thresholds[place]}
        assert {each["class"] for each in answer["classes"]} == over and len(answer["probabilities"]) == 10
    block = {"id": np.arange(5), "reason": np.array([""] * 5, dtype=object), "image": images}
    found = predictions(block, model.predict, top=3, all_probabilities=True, thresholds=thresholds)
    assert np.array_equal(found["reached"], probabilities >= np.array(thresholds))
    perfect = LabelPredictions(id=answers.id, label=answers.label, probability=answers.label.astype(np.float32))
    lost = resampled(answers, perfect)
    assert lost.bound < lost.difference < 0 and lost.difference == pytest.approx(expected - 1)
    data = EvalData(
        store=open_store(recipe.data.uri), manifest=load_manifest(open_store(recipe.data.uri)), crop=recipe.data
    )
    decision = task_of(multi_label=True).decide(answers, perfect, outcome.model, Rule(0.01), data)
    assert not decision.promote and decision.reason.startswith("lower mean average precision than models:/canvases/1")
    assert Decision.from_tags(decision.tags) == decision


@pytest.mark.faults
@pytest.mark.usefixtures("ray_local")
def test_a_killed_run_goes_on_bit_for_bit(recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = recipe_of("whole"), recipe_of("broken")
    train(whole, Console(quiet=True))
    write = RunFolder.write

    def die(self: RunFolder, checkpoint: Any, *, keep_best: int) -> None:
        write(self, checkpoint, keep_best=keep_best)
        if checkpoint.step == 8:
            raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", die)
        with pytest.raises(Exception, match="power cut"):
            train(broken, Console(quiet=True))
    train(broken, Console(quiet=True))
    one, other = (folder_of(recipe).newest(pytest.fail) for recipe in (whole, broken))
    assert one is not None and other is not None
    for group, tensors in one.tensors.items():
        assert all(tensor.equal(other.tensors[group][name]) for name, tensor in tensors.items())
    assert dict(one.metrics) == dict(other.metrics)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"optim__loss": "cross_entropy"}, 'optim.loss must be "bce" or "bce_sum" for a multi-label data set'),
    ({"data__sampling": "balanced"}, "data.sampling needs one class per image"),
    ({"loss__class_weights": "auto"}, "loss.class_weights needs one class per image"),
    ({"run__metric": "macro_f1"}, "run.metric must be 'mean_average_precision' for a multi-label data set"),
]


@pytest.mark.parametrize(("settings", "error"), BAD)
def test_what_needs_one_class_per_image_is_refused(
    recipe_of: Callable[..., Recipe], settings: dict[str, Any], error: str
) -> None:
    with pytest.raises(UserError, match=error) as caught:
        train(recipe_of("refused", **settings), Console(quiet=True))
    assert "\n" not in str(caught.value)
