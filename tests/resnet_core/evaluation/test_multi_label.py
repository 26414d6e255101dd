"""Average precision and thresholds equal scikit-learn's on the same scores, in batches and with ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from resnet_core.evaluation.multi_label import MultiLabelSums

CPU = torch.device("cpu")


def batch(seed: int, images: int = 173, classes: int = 7, digits: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(images, classes, generator=generator) < torch.linspace(0.02, 0.6, classes)).to(torch.uint8)
    labels[:1] = 1
    noise = torch.randn(images, classes, generator=generator)
    return (noise + 1.5 * labels).mul(10**digits).round() / 10**digits, labels  # rounded: scores tie


@pytest.mark.parametrize("digits", [0, 1, 6])
@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_scikit_learns(seed: int, digits: int) -> None:
    logits, labels = batch(seed, digits=digits)
    sums = MultiLabelSums(7, CPU)
    for rows in torch.arange(len(logits)).split(50):
        sums.update(logits[rows], labels[rows])
    scores, truth = logits.sigmoid().numpy(), labels.numpy()
    theirs = average_precision_score(truth, scores, average=None)
    np.testing.assert_allclose(sums.rates.average_precision.numpy(), theirs, atol=1e-12)
    assert sums.metrics()["mean_average_precision"] == pytest.approx(theirs.mean(), abs=1e-12)


def test_a_threshold_has_the_highest_f1_of_all() -> None:
    logits, labels = batch(3)
    sums = MultiLabelSums(7, CPU)
    sums.update(logits, labels)
    scores, rates = logits.sigmoid().numpy(), sums.rates
    for label in range(7):
        every = [f1_score(labels[:, label], scores[:, label] >= score) for score in np.unique(scores[:, label])]
        chosen = scores[:, label].astype(np.float64) >= float(rates.threshold[label])
        assert f1_score(labels[:, label], chosen) == pytest.approx(max(every)) == pytest.approx(float(rates.f1[label]))


def test_a_class_without_images_is_left_out_of_the_mean() -> None:
    logits, labels = batch(1)
    labels[:, 2] = 0
    sums = MultiLabelSums(7, CPU)
    sums.update(logits, labels)
    assert sums.rates.average_precision.isnan().tolist() == [label == 2 for label in range(7)]
    others = [label for label in range(7) if label != 2]
    expected = average_precision_score(labels[:, others].numpy(), logits[:, others].sigmoid().numpy())
    metrics = sums.metrics()
    assert metrics["mean_average_precision"] == pytest.approx(expected, abs=1e-12)
    assert metrics["accuracy"] == pytest.approx(float(((logits > 0) == labels.bool()).double().mean()))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.double(), labels.double())
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_nothing_scored_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was scored"):
        MultiLabelSums(3, CPU).metrics()
