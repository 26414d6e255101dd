"""What is said of one model and of two follows from their answers, image by image."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from infra.errors import UserError
from infra.proportions import Paired, wilson
from infra.registry.gate import Decision, OverClasses, decide
from pipelines.evaluation.classifier import ServedClassifier
from pipelines.evaluation.comparison import Comparison
from pipelines.evaluation.predictions import Predictions
from pipelines.evaluation.result import Evaluated, calibration_bins, evaluate_split, pictures
from pipelines.evaluation.scoring import SplitScore, score_model
from tests.pipelines.conftest import Coloured

NAMES = ("ant", "bee", "cat")


def answered(label: np.ndarray, predicted: np.ndarray, probability: float | np.ndarray = 0.8) -> Predictions:
    surety = np.broadcast_to(np.asarray(probability, np.float32), label.shape).copy()
    return Predictions(
        id=np.arange(100, 100 + len(label)),
        label=label.astype(np.int32),
        predicted=predicted.astype(np.int32),
        probability=surety,
        label_probability=np.where(label == predicted, surety, (1 - surety) / 2),
        top5=np.ones(len(label), dtype=bool),
    )


def flipped(label: np.ndarray, rows: list[int]) -> np.ndarray:
    predicted = label.copy()
    predicted[rows] = (label[rows] + 1) % 3
    return predicted


@pytest.fixture
def label() -> np.ndarray:
    return np.repeat([0, 1, 2], 40)


@pytest.fixture
def comparison(label: np.ndarray) -> Comparison:
    """Of the forty ants, the new model loses twelve; of the bees it gains one and loses one; of the cats none."""
    old = answered(label, flipped(label, [40, 41, 80]))
    surety = np.linspace(0.5, 0.9, len(label))
    new = answered(label, flipped(label, [*range(12), 41, 42, 80]), surety)
    return Comparison(new=new, old=old, class_names=NAMES)


def test_wins_losses_and_agreement(comparison: Comparison) -> None:
    assert comparison.paired == Paired(wins=1, losses=13, count=120)
    assert comparison.wins.tolist() == [40]
    assert comparison.losses.tolist() == [42, *range(11, -1, -1)]  # those that the new model is surest of first
    assert comparison.agreement == pytest.approx(106 / 120)


def test_which_classes_changed(comparison: Comparison) -> None:
    ant, bee, cat = comparison.class_changes()
    assert [change.name for change in (ant, bee, cat)] == list(NAMES)
    assert (ant.paired, bee.paired) == (Paired(wins=0, losses=12, count=40), Paired(wins=1, losses=1, count=40))
    assert ant.adjusted_p == pytest.approx(3 * 2 * 0.5**12)  # the least of three, after Benjamini and Hochberg
    assert [change.significant for change in (ant, bee, cat)] == [True, False, False]
    assert cat.adjusted_p == 1.0


def test_equal_models_of_a_thousand_classes_have_no_changed_class() -> None:
    generator = np.random.default_rng(0)
    label = np.repeat(np.arange(1000), 50)
    old, new = (answered(label, np.where(generator.random(50_000) < 0.7, label, 1000)) for _ in range(2))
    changes = Comparison(new=new, old=old, class_names=tuple(map(str, range(1001)))).class_changes()
    assert len(changes) == 1000  # a class without images has none
    assert min(change.paired.p_value for change in changes) < 0.01  # by chance, of a thousand
    assert not any(change.significant for change in changes)


def test_other_images_are_refused(comparison: Comparison, label: np.ndarray) -> None:
    other = answered(label[:-1], label[:-1])
    with pytest.raises(UserError, match="not shown the same images"):
        Comparison(new=other, old=comparison.old, class_names=NAMES)


def test_predictions_survive_parquet(comparison: Comparison) -> None:
    new = comparison.new
    again = Predictions.from_parquet(new.to_parquet())
    for name in Predictions.__slots__:
        np.testing.assert_array_equal(getattr(again, name), getattr(new, name))
        assert getattr(again, name).dtype == getattr(new, name).dtype
    both = pq.read_table(io.BytesIO(comparison.to_parquet()))
    columns = ["id", "label", "old_predicted", "old_probability", "new_predicted", "new_probability"]
    assert both.column_names == columns


def test_parts_are_joined_in_the_order_of_ids(comparison: Comparison) -> None:
    late, early = comparison.new.rows(slice(60, None)), comparison.new.rows(slice(60))
    joined = Predictions.join([late, early])
    assert joined.id.tolist() == comparison.new.id.tolist()
    assert joined.predicted.tolist() == comparison.new.predicted.tolist()
    assert joined.confusion(3).tolist() == [[28, 12, 0], [0, 38, 2], [1, 0, 39]]
    assert joined.pairs().tolist() == [[0, 0, 28], [0, 1, 12], [1, 1, 38], [1, 2, 2], [2, 0, 1], [2, 2, 39]]


def evaluated(predictions: Predictions, calibration_error: float) -> Evaluated:
    counts = np.bincount(predictions.label, minlength=3)
    right = np.bincount(predictions.label[predictions.correct], minlength=3)
    score = SplitScore(
        accuracy=float(predictions.correct.mean()),
        loss=float(-np.log(predictions.label_probability).mean()),
        count=len(predictions),
        data_digest="",
        top5_accuracy=1.0,
        calibration_error=calibration_error,
        class_counts=tuple(counts.tolist()),
        class_correct=tuple(right.tolist()),
        class_predicted=tuple(np.bincount(predictions.predicted, minlength=3).tolist()),
        macro_precision=0.0,
        macro_recall=0.0,
    )
    return Evaluated(score=score, predictions=predictions)


def test_intervals_cover_what_the_sample_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is right ten points less often than it says: its calibration error is 0.1, whatever samples show."""
    monkeypatch.setattr("pipelines.evaluation.result._RESAMPLES", 200)
    covered = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        surety = generator.uniform(0.4, 1, 500).astype(np.float32)
        found = answered(np.zeros(500, np.int32), np.where(generator.random(500) < surety - 0.1, 0, 1), surety)
        one = evaluated(found, float(np.abs(np.bincount(*calibration_bins(found))).sum() / 500))
        covered += one.calibration_error.low <= 0.1 <= one.calibration_error.high
        assert one.loss.low < one.score.loss < one.loss.high
        assert one.accuracy == wilson(int(found.correct.sum()), 500)
    assert covered >= 16


def test_a_class_without_images_has_no_interval(label: np.ndarray) -> None:
    few = answered(label[:50], label[:50])
    assert evaluated(few, 0.2).class_accuracy == (wilson(40, 40), wilson(10, 10), None)


def test_mistakes_come_surest_first(comparison: Comparison) -> None:
    wrong = evaluated(comparison.new, 0.1).mistakes
    assert wrong.id.tolist() == [180, 142, 141, *range(111, 99, -1)]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)


@pytest.mark.usefixtures("in_process")
def test_a_split_is_answered_as_it_is_scored(colours: Coloured, weights: dict[str, torch.Tensor]) -> None:
    predict = ServedClassifier.from_checkpoint(colours.checkpoint(weights, {})).predict
    found = evaluate_split(predict, colours.data)
    assert found.score == score_model(predict, colours.data)
    rows = colours.columns("test")
    probabilities = predict(rows["image"])
    assert found.predictions.id.tolist() == rows["id"].tolist() == list(range(30, 60))
    assert found.predictions.predicted.tolist() == probabilities.argmax(axis=1).tolist()
    np.testing.assert_allclose(found.predictions.probability, probabilities.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.predictions.label_probability, probabilities[np.arange(30), rows["label"]], 1e-5)
    error = np.abs(np.bincount(*calibration_bins(found.predictions))).sum() / 30
    assert error == pytest.approx(found.score.calibration_error, abs=1e-6)


@pytest.mark.usefixtures("in_process")
def test_pictures_are_found_by_id(colours: Coloured) -> None:
    rows = colours.columns("test")
    found = pictures(colours.data, [59, 31])
    assert sorted(found) == [31, 59]
    for sample, image in found.items():
        np.testing.assert_array_equal(image, rows["image"][sample - 30])
    assert pictures(colours.data, []) == {}


def over_classes(label: np.ndarray, old: np.ndarray, new: np.ndarray, classes: int) -> Comparison:
    def answers(predicted: np.ndarray) -> Predictions:
        sure = np.full(len(label), 0.9, np.float32)
        return Predictions(
            id=np.arange(len(label)), label=label.astype(np.int32), predicted=predicted.astype(np.int32),
            probability=sure, label_probability=sure, top5=np.ones(len(label), dtype=bool),
        )  # fmt: skip

    return Comparison(new=answers(new), old=answers(old), class_names=tuple(map(str, range(classes))))


def test_the_difference_over_classes_is_scikit_learns_and_its_bound_is_below() -> None:
    rng = np.random.default_rng(0)
    label = rng.choice(4, 400, p=[0.7, 0.2, 0.08, 0.02])
    old, new = (np.where(rng.random(400) < right, label, rng.integers(0, 4, 400)) for right in (0.5, 0.8))
    found = over_classes(label, old, new, 5)
    pairs: list[tuple[OverClasses, Callable[..., float]]] = [
        ("balanced_accuracy", balanced_accuracy_score),
        ("macro_f1", macro_f1),
    ]
    for measure, score in pairs:
        resampled = found.resampled(measure)
        assert resampled == found.resampled(measure)  # the seed is fixed
        assert resampled.difference == pytest.approx(score(label, new) - score(label, old), abs=1e-12)
        assert -1 < resampled.bound < resampled.difference


def macro_f1(label: np.ndarray, predicted: np.ndarray) -> float:
    return float(f1_score(label, predicted, average="macro", zero_division=0))


@pytest.mark.parametrize("measure", ["balanced_accuracy", "macro_f1"])
def test_few_images_of_a_class_rule_out_little_even_if_the_models_never_differ(measure: OverClasses) -> None:
    def bound(rare: int) -> float:
        label = np.repeat([0, 1], [2000, rare])
        resampled = over_classes(label, label, label, 2).resampled(measure)
        assert resampled.difference == 0
        return resampled.bound

    assert bound(10) < -0.02 < bound(1000) < 0


def test_the_gate_decides_by_the_measure_that_it_is_given() -> None:
    label = np.repeat([0, 1], [950, 50])
    old = np.zeros(1000, dtype=int)  # 95 % accurate, and blind to the rare class
    new = np.where(label == 1, np.where(np.arange(1000) % 5, 1, 0), np.where(np.arange(1000) % 12, 0, 1))
    found = over_classes(label, old, new, 2)
    assert not decide(found.paired, champion="models:/m/1").promote
    decision = decide(found.paired, champion="models:/m/1", resampled=found.resampled("balanced_accuracy"))
    assert decision.promote
    assert decision.reason.startswith("balanced accuracy as high as that of models:/m/1 or higher: +35.79")
    assert Decision.from_tags(decision.tags) == decision
    back = over_classes(label, new, old, 2)
    worse = decide(back.paired, champion="models:/m/1", resampled=back.resampled("macro_f1"))
    assert not worse.promote and worse.reason.startswith("lower macro f1 than models:/m/1: -")
