"""Scores over classes equal scikit-learn's on the same predictions, also summed over batches and for many classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

from resnet_core.evaluation import EvalSums
from resnet_core.evaluation.exact import MATRIX_CLASSES


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("classes", [3, 12, MATRIX_CLASSES + 5])
@pytest.mark.parametrize("seed", range(4))
def test_scores_over_classes_are_scikit_learns(classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(90, generator=generator) ** 3 * classes).long()  # many images of few classes
    logits = torch.randn(90, classes, generator=generator)
    logits[torch.arange(90), labels] += 2.0 * (torch.rand(90, generator=generator) < 0.6)
    sums = EvalSums(classes, torch.device("cpu"))
    for rows in torch.arange(90).split(37):
        sums.update(logits[rows], labels[rows])
    truth, predicted = labels.numpy(), logits.argmax(dim=1).numpy()
    metrics = sums.metrics()
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted), abs=1e-12)
    means = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)[:3]
    for name, mean in zip(("macro_precision", "macro_recall", "macro_f1"), means, strict=True):
        assert metrics[name] == pytest.approx(mean, abs=1e-12)
    every = range(classes)
    rates = precision_recall_fscore_support(truth, predicted, labels=every, average=None, zero_division=0)[:3]
    found = sums.classes
    for mine, theirs in zip((found.precision, found.recall, found.f1), rates, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-12)
