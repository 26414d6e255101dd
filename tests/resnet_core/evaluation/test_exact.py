from __future__ import annotations

import pytest
import torch
from torch import nn

from resnet_core.evaluation import EvalBatch, EvalSums, evaluate
from resnet_core.step import StepConfig

CPU = torch.device("cpu")


def sums_of(logits: torch.Tensor, labels: torch.Tensor, cuts: list[int]) -> EvalSums:
    sums = EvalSums(logits.shape[1], CPU)
    for part, wanted in zip(logits.tensor_split(cuts), labels.tensor_split(cuts), strict=True):
        sums.update(part, wanted)
    return sums


def test_sums_of_one_shard_equal_those_of_three_uneven_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(101, 7, generator=generator), torch.randint(0, 7, (101,), generator=generator)
    whole, parts = sums_of(logits, labels, []), sums_of(logits, labels, [3, 90])
    assert torch.equal(whole.confusion, parts.confusion)
    assert int(whole.top5) == int(parts.top5)
    assert whole.metrics()["loss"] == pytest.approx(parts.metrics()["loss"], abs=1e-12)
    reference = nn.functional.cross_entropy(logits.double(), labels)
    assert whole.metrics()["loss"] == pytest.approx(float(reference), abs=1e-6)


def test_top1_top5_and_confusion_by_hand() -> None:
    logits = torch.tensor([[9.0, 1, 2, 3, 4, 5], [0, 5, 4, 3, 2, 1], [5.0, 4, 3, 2, 1, 0]])
    sums = sums_of(logits, torch.tensor([0, 2, 5]), [])
    metrics = sums.metrics()
    assert (metrics["accuracy"], metrics["top5_accuracy"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert sums.confusion.nonzero().tolist() == [[0, 0], [2, 1], [5, 0]]
    assert (int(sums.count), int(sums.top1)) == (3, 1)


def test_fewer_than_five_classes_are_all_in_the_top_five() -> None:
    assert sums_of(torch.eye(3), torch.tensor([1, 1, 1]), []).metrics()["top5_accuracy"] == 1.0


def test_scoring_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was scored"):
        EvalSums(3, CPU).metrics()


def calibration_by_hand(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Bins ](m - 1) / 15, m / 15]; each weighs its share of the images, by accuracy less mean confidence."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(logits.softmax(1).tolist(), labels.tolist(), strict=True):
        confidence = max(row)
        number = next(m for m in range(1, 16) if confidence <= m / 15 + 1e-12)
        bins[number - 1].append((confidence, row.index(confidence) == label))
    return sum(
        abs(sum(right for _, right in found) - sum(confidence for confidence, _ in found)) for found in bins
    ) / len(labels)


def random_scores(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of 7 classes and confidences all over; about half of the predictions are right."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(rows, 7, generator=generator) * torch.linspace(0.1, 6, rows)[:, None]
    labels = torch.randint(0, 7, (rows,), generator=generator)
    return logits, torch.where(torch.rand(rows, generator=generator) < 0.4, logits.argmax(1), labels)


def test_calibration_error_by_hand() -> None:
    logits, labels = random_scores(300)
    expected = calibration_by_hand(logits, labels)
    assert 0.05 < expected < 0.9
    assert sums_of(logits, labels, []).metrics()["calibration_error"] == pytest.approx(expected, abs=1e-6)


def test_calibration_error_of_certain_predictions() -> None:
    certain = 100 * torch.eye(4)
    assert sums_of(certain, torch.arange(4), []).metrics()["calibration_error"] == 0
    assert sums_of(certain, torch.tensor([0, 1, 2, 0]), []).metrics()["calibration_error"] == 0.25


def test_calibration_sums_are_equal_bit_for_bit_in_any_order() -> None:
    logits, labels = random_scores(300)
    whole = sums_of(logits, labels, [])
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sums_of(logits[order], labels[order], [1, 100, 101]).calibration, whole.calibration)


def test_every_sum_is_added_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = random_scores(50)
    sums = sums_of(logits, labels, [])
    alone = sums.metrics()
    monkeypatch.setattr(
        "resnet_core.evaluation.exact.sum_over_ranks_", lambda values: values.mul_(3)
    )  # three equal ranks
    sums.all_reduce()
    assert int(sums.count) == 150
    assert sums.metrics() == pytest.approx(alone)


def test_accuracy_by_class() -> None:
    logits = torch.eye(4)[[0, 0, 1, 3, 0]]
    by_class = sums_of(logits, torch.tensor([0, 0, 1, 1, 3]), []).class_accuracy().tolist()
    assert by_class[:2] == [1.0, 0.5]
    assert by_class[2] != by_class[2]  # no image of class 2
    assert by_class[3] == 0.0


@pytest.mark.parametrize("cuts", [[], [3, 90], [10, 20, 30, 40, 50]])
def test_many_classes_are_counted_as_few_are_without_a_matrix(cuts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = random_scores(101)
    few = sums_of(logits, labels, cuts)
    monkeypatch.setattr("resnet_core.evaluation.exact.MATRIX_CLASSES", 6)
    many = sums_of(logits, labels, cuts)
    assert torch.equal(many.pairs, few.pairs)
    rebuilt = torch.zeros(7, 7, dtype=torch.int64)
    rebuilt[many.pairs[:, 0], many.pairs[:, 1]] = many.pairs[:, 2]
    assert torch.equal(rebuilt, few.confusion)
    assert many.metrics() == few.metrics()
    assert torch.equal(many.class_counts, few.confusion.sum(dim=1))
    assert torch.equal(many.class_correct, few.confusion.diagonal())
    assert torch.equal(many.class_accuracy().nan_to_num(-1), few.class_accuracy().nan_to_num(-1))
    assert (int(many.count), int(many.top1)) == (101, int(few.top1))
    many.all_reduce()
    assert torch.equal(many.pairs, few.pairs)
    with pytest.raises(ValueError, match="7 classes are more than 6: read `pairs` instead"):
        _ = many.confusion


def test_many_classes_take_no_more_than_the_images_that_were_scored() -> None:
    """ImageNet-21k has 21,841 classes: a matrix of them would be 3.8 GB."""
    classes = 21_841
    sums = EvalSums(classes, CPU)
    labels = torch.arange(256) * 85
    logits = torch.zeros(256, classes)
    logits[torch.arange(256), labels + torch.arange(256) % 2] = 1.0
    sums.update(logits, labels)
    assert sums.pairs.tolist() == [[85 * i, 85 * i + i % 2, 1] for i in range(256)]
    assert sums.metrics()["accuracy"] == 0.5
    assert sums.class_counts.shape == sums.class_correct.shape == (classes,)
    assert EvalSums(1024, CPU).confusion.shape == (1024, 1024)
    with pytest.raises(ValueError, match="1,025 classes are more than 1,024"):
        _ = EvalSums(1025, CPU).confusion


def test_nothing_scored_of_many_classes_is_an_error() -> None:
    sums = EvalSums(2000, CPU)
    assert sums.pairs.shape == (0, 3)
    with pytest.raises(ValueError, match="nothing was scored"):
        sums.metrics()


class Lookup(nn.Module):
    """Logits that the first pixel's first channel picks from a table: predictions under the test's control."""

    def __init__(self, table_PK: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table_PK)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        pixel = images_BCHW[:, 0, 0, 0] * 0.229 + 0.485
        return self.table[(pixel * 255).round().long()]


def batches(pixels: list[int], labels: list[int], size: int) -> list[EvalBatch]:
    images = torch.zeros(len(pixels), 4, 6, 3, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(pixels, dtype=torch.uint8)
    columns = (images, torch.tensor(labels), 100 + torch.arange(len(pixels)))
    return [
        EvalBatch(images_BHWC=part, labels_B=wanted, ids_B=ids)
        for part, wanted, ids in zip(*(column.split(size) for column in columns), strict=True)
    ]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_surest_wrong_predictions_are_kept_whatever_the_batches(size: int) -> None:
    # image i is predicted as class i % 3, the surer the larger i
    table = torch.stack([nn.functional.one_hot(torch.tensor(i % 3), 3) * (i + 1.0) for i in range(5)])
    model = Lookup(table).train()
    labels = [0, 0, 2, 1, 0]  # right, wrong, right, wrong, wrong
    _, mistakes = evaluate(model, batches(list(range(5)), labels, size), StepConfig(), num_classes=3, max_mistakes=2)
    assert mistakes.ids_N.tolist() == [104, 103]
    assert mistakes.labels_N.tolist() == [0, 1]
    assert mistakes.predicted_N.tolist() == [1, 0]
    assert mistakes.probability_N.tolist() == pytest.approx(table.softmax(1).amax(1)[[4, 3]].tolist())
    assert mistakes.images_NHWC[:, 0, 0, 0].tolist() == [4, 3]
    assert model.training


def test_places_that_no_mistake_fills_are_left_out() -> None:
    _, mistakes = evaluate(
        Lookup(torch.eye(3)), batches([0, 1, 2], [0, 1, 1], 3), StepConfig(), num_classes=3, max_mistakes=25
    )
    assert mistakes.ids_N.tolist() == [102]
    assert mistakes.images_NHWC.shape == (1, 4, 6, 3)


def test_evaluation_leaves_weights_statistics_and_mode_alone(make_state, make_batch, same_state) -> None:
    state, untouched = make_state(), make_state()
    batch = make_batch(9)
    scored = EvalBatch(images_BHWC=batch.images_BHWC, labels_B=batch.labels_B, ids_B=torch.arange(9))
    sums, _ = evaluate(state.model, [scored], StepConfig(), num_classes=3)
    assert int(sums.count) == 9
    assert state.model.training
    same_state(state, untouched)


def test_the_mode_is_restored_when_a_batch_fails(make_state) -> None:
    model = make_state().model

    def broken():
        raise OSError("shard 3 is gone")
        yield

    with pytest.raises(OSError, match="shard 3"):
        evaluate(model, broken(), StepConfig(), num_classes=3)
    assert model.training
