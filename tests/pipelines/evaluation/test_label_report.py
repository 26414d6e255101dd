"""What `evaluate.py` says of multi-label models, against scikit-learn's figures."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from infra.errors import UserError
from infra.registry.gate import Score
from infra.storage import LocalStore
from pipelines.config.crop import CropConfig
from pipelines.data.shards.manifest import Manifest, Stored
from pipelines.evaluation.label_predictions import EvaluatedLabels, LabelPredictions
from pipelines.evaluation.label_report import LabelComparisonReport, LabelReport
from pipelines.evaluation.models import Target
from pipelines.evaluation.outputs import Outputs
from pipelines.evaluation.scoring import EvalData
from resnet_core.evaluation.multi_label import MultiLabelSums

torch = pytest.importorskip("torch")

NAMES = ("dog", "cat", "unicorn", "bird")  # no image has a unicorn
IMAGES = 300
THRESHOLDS = (0.5, 0.3, 1.0, 0.7)


def report(noise: float, *, seed: int = 0, thresholds: tuple[float, ...] = THRESHOLDS) -> LabelReport:
    """Return the report on a model whose scores are the labels and noise."""
    labels = (np.random.default_rng(7).random((IMAGES, 4)) < (0.5, 0.2, 0.0, 0.1)).astype(np.uint8)
    blurred = labels + noise * np.random.default_rng(seed).normal(size=labels.shape)
    scores = (1 / (1 + np.exp(1 - 2 * blurred))).astype(np.float32)
    sums = MultiLabelSums(4, torch.device("cpu"))
    sums.add(torch.from_numpy(scores), torch.from_numpy(labels))
    found = sums.metrics()
    predictions = LabelPredictions(id=np.arange(IMAGES), label=labels, probability=scores)
    mean = found["mean_average_precision"]
    score = Score(
        accuracy=found["accuracy"],
        loss=found["loss"],
        count=IMAGES,
        data_digest="0" * 64,
        mean_average_precision=mean,
    )
    manifest = Manifest(
        class_names=NAMES,
        stored=Stored(form="original", size=0, quality=0, channels=3),
        source="none",
        fingerprint="",
        prepare={},
        splits={"test": IMAGES},
        shards=(),
        multi_label=True,
    )
    return LabelReport(
        target=Target(
            description=f"noise {noise}",
            model=None,  # type: ignore[arg-type]  # nothing is scored here
            class_names=NAMES,
            data=EvalData(store=LocalStore(uri="/nowhere"), manifest=manifest, crop=CropConfig(image_size=32)),
            multi_label=True,
            thresholds=thresholds,
        ),
        evaluated=EvaluatedLabels(score=score, predictions=predictions),
    )


def printed(shown: LabelReport | LabelComparisonReport) -> list[str]:
    console = Console(width=200, file=io.StringIO())
    shown.show(console)
    return [re.sub(r"\s+", " ", line).strip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_one_model_has_scikit_learns_figures() -> None:
    shown = report(noise=1.0)
    kept, found = shown.evaluated.predictions, shown.as_json()
    seen = [0, 1, 3]
    expected = average_precision_score(kept.label[:, seen], kept.probability[:, seen], average=None)
    classes = found["classes"]
    assert [classes[NAMES[place]]["average_precision"] for place in seen] == pytest.approx(expected.tolist(), abs=1e-9)
    assert found["mean_average_precision"] == pytest.approx(expected.mean(), abs=1e-9)
    low, high = found["mean_average_precision_interval"]
    assert 0 < low < found["mean_average_precision"] < high < 1
    reached = kept.probability >= np.array(THRESHOLDS)
    rates = precision_recall_fscore_support(kept.label, reached, average=None, zero_division=0.0)
    for place, name in enumerate(NAMES):
        assert classes[name]["threshold"] == THRESHOLDS[place]
        assert classes[name]["count"] == rates[3][place]
        figures = [classes[name][key] for key in ("precision", "recall", "f1")]
        assert figures == pytest.approx([rate[place] for rate in rates[:3]], abs=1e-12)
    assert found["macro_f1"] == pytest.approx(rates[2].mean())
    assert classes["unicorn"]["average_precision"] is None


def test_one_model_as_a_person_reads_it(tmp_path: Path) -> None:
    shown = report(noise=1.0)
    text = printed(shown)
    assert text[0] == "model noise 1.0"
    assert any(re.fullmatch(r"mean AP \d\d\.\d\d% \(95 %: \d\d\.\d\d% to \d\d\.\d\d%\)", line) for line in text)
    assert any(re.fullmatch(r"macro F1 \d\d\.\d\d% at the model's thresholds \(precision .*%\)", line) for line in text)
    assert "class images AP 95 % threshold precision recall F1" in text
    assert "unicorn 0 - - 1.000 0.0% 0.0% 0.0%" in text
    places = {name: str(tmp_path / name) for name in ("json", "predictions", "plots")}
    Outputs(**places).write(shown)
    assert json.loads(Path(places["json"]).read_text())["count"] == IMAGES
    assert LabelPredictions.from_parquet(Path(places["predictions"]).read_bytes()).label.shape == (IMAGES, 4)
    assert (Path(places["plots"]) / "average_precision.png").stat().st_size > 5000


def test_a_model_without_thresholds_is_ranked_only() -> None:
    shown = report(noise=1.0, thresholds=())
    assert "macro F1 the model has no thresholds" in printed(shown)
    assert "f1" not in shown.as_json()["classes"]["dog"] and "macro_f1" not in shown.as_json()


def test_the_better_of_two_models_is_found(tmp_path: Path) -> None:
    better = LabelComparisonReport(old=report(noise=2.0), new=report(noise=0.5, seed=1))
    found = better.as_json()
    assert found["difference"] == found["new"]["mean_average_precision"] - found["old"]["mean_average_precision"]
    assert 0 < found["difference_interval"][0] < found["difference"] < found["difference_interval"][1]
    assert found["classes"]["unicorn"] == {"difference": None, "difference_interval": None}
    text = printed(better)
    assert "verdict B is better" in text and "unicorn 0 - - - -" in text
    assert "verdict A is better" in printed(LabelComparisonReport(old=better.new, new=better.old))
    Outputs(predictions=str(tmp_path / "both"), plots=str(tmp_path / "plots")).write(better)
    columns = pq.read_table(tmp_path / "both").column_names
    assert columns == ["id", "label", "old_probability", "new_probability"]
    assert (tmp_path / "plots" / "classes.png").stat().st_size > 5000


def test_a_model_does_not_differ_from_itself() -> None:
    same = LabelComparisonReport(old=report(noise=1.0), new=report(noise=1.0))
    assert same.as_json()["difference_interval"] == [0.0, 0.0]
    assert "verdict these images do not show which model is better" in printed(same)


def test_other_images_are_refused() -> None:
    one, other = report(noise=1.0), report(noise=1.0)
    other.evaluated.predictions.id[0] = 10**6
    with pytest.raises(UserError, match="the two models were not shown the same images"):
        LabelComparisonReport(old=one, new=other)
