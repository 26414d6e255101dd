"""Losses against their formulas, and against timm's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from resnet_core.config import Loss, LossWeightsConfig, OptimConfig
from resnet_core.losses import LossConfig, dense_targets, sum_loss
from resnet_core.mixed_labels import MixedLabels

B, K = 6, 5
GENERATOR = torch.Generator().manual_seed(3)
LOGITS = 3 * torch.randn(B, K, generator=GENERATOR)
LABELS, OTHER = torch.randint(0, K, (2, B), generator=GENERATOR)
PLAIN = MixedLabels(labels_B=LABELS)
MIXED = MixedLabels(labels_B=LABELS, other_B=OTHER, share_B=torch.tensor([1.0, 0.0, 0.5, 0.25, 0.9, 0.6]))


def smoothed(targets: MixedLabels, smoothing: float) -> torch.Tensor:
    """Row by row, from the definition, float64."""
    dense = torch.zeros(B, K, dtype=torch.float64)
    for i in range(B):
        share = 1.0 if targets.share_B is None else float(targets.share_B[i])
        dense[i, targets.labels_B[i]] += share
        if targets.other_B is not None:
            dense[i, targets.other_B[i]] += 1 - share
    return dense * (1 - smoothing) + smoothing / K


@pytest.mark.parametrize("targets", [PLAIN, MIXED])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dense_targets_are_the_shares_smoothed(targets: MixedLabels, smoothing: float) -> None:
    dense = dense_targets(targets, K, smoothing)
    torch.testing.assert_close(dense.double(), smoothed(targets, smoothing), atol=1e-7, rtol=0)
    torch.testing.assert_close(dense.sum(1), torch.ones(B))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_plain_cross_entropy_is_torchs_bit_for_bit(smoothing: float) -> None:
    loss = sum_loss(LOGITS, PLAIN, LossConfig(label_smoothing=smoothing))
    assert torch.equal(loss, F.cross_entropy(LOGITS, LABELS, reduction="sum", label_smoothing=smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_mixed_images(smoothing: float) -> None:
    loss = sum_loss(LOGITS, MIXED, LossConfig(label_smoothing=smoothing))
    expected = -(smoothed(MIXED, smoothing) * LOGITS.double().log_softmax(dim=1)).sum()
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("targets", [PLAIN, MIXED])
@pytest.mark.parametrize(("smoothing", "threshold"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.2)])
def test_binary_cross_entropy_asks_of_every_class(targets: MixedLabels, smoothing: float, threshold: float) -> None:
    dense = smoothed(targets, smoothing)
    if threshold:
        dense = (dense > threshold).double()
    chance = LOGITS.double().sigmoid()
    each = -(dense * chance.log() + (1 - dense) * (1 - chance).log())
    config = LossConfig(loss="bce", label_smoothing=smoothing, bce_threshold=threshold)
    assert float(sum_loss(LOGITS, targets, config)) == pytest.approx(float(each.sum() / K), rel=1e-5)
    summed = LossConfig(loss="bce_sum", label_smoothing=smoothing, bce_threshold=threshold)
    assert float(sum_loss(LOGITS, targets, summed)) == pytest.approx(float(each.sum()), rel=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_binary_cross_entropy_is_timms(threshold: float) -> None:
    timm = pytest.importorskip("timm.loss.binary_cross_entropy")
    theirs = timm.BinaryCrossEntropy(smoothing=0.1, target_threshold=threshold or None)(LOGITS, LABELS)
    config = LossConfig(loss="bce", label_smoothing=0.1, bce_threshold=threshold)
    torch.testing.assert_close(sum_loss(LOGITS, PLAIN, config) / B, theirs)


def test_a_hit_is_the_class_with_the_larger_share() -> None:
    assert torch.equal(PLAIN.dominant_B, LABELS)
    expected = [LABELS[0], OTHER[1], LABELS[2], OTHER[3], LABELS[4], LABELS[5]]
    assert MIXED.dominant_B.tolist() == [int(label) for label in expected]


def test_the_recipe_s_keys_reach_the_loss() -> None:
    config = OptimConfig(loss="bce", label_smoothing=0.1, bce_threshold=0.2)
    expected = LossConfig(loss="bce", label_smoothing=0.1, bce_threshold=0.2, focal_gamma=2.0, class_weights_K=None)
    assert LossConfig.of(config, LossWeightsConfig(focal_gamma=2.0)) == expected


WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 4.0, 0.25])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_cross_entropy_is_torchs(smoothing: float) -> None:
    config = LossConfig(label_smoothing=smoothing, class_weights_K=WEIGHTS)
    theirs = F.cross_entropy(LOGITS, LABELS, WEIGHTS, reduction="sum", label_smoothing=smoothing)
    assert torch.equal(sum_loss(LOGITS, PLAIN, config), theirs)
    terms = -smoothed(MIXED, smoothing) * LOGITS.double().log_softmax(dim=1) * WEIGHTS
    assert float(sum_loss(LOGITS, MIXED, config)) == pytest.approx(float(terms.sum()), rel=1e-6)


@pytest.mark.parametrize("targets", [PLAIN, MIXED])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_follows_its_formula_with_weights_and_smoothing(targets: MixedLabels, gamma: float) -> None:
    logs = LOGITS.double().log_softmax(dim=1)
    terms = -smoothed(targets, 0.1) * logs * (1 - logs.exp()) ** gamma * WEIGHTS
    config = LossConfig(label_smoothing=0.1, focal_gamma=gamma, class_weights_K=WEIGHTS)
    assert float(sum_loss(LOGITS, targets, config)) == pytest.approx(float(terms.sum()), rel=1e-5)


def test_binary_focal_loss_is_torchvisions() -> None:
    hot = F.one_hot(LABELS, K).float()
    theirs = sigmoid_focal_loss(LOGITS, hot, alpha=-1, gamma=2.0)
    torch.testing.assert_close(sum_loss(LOGITS, PLAIN, LossConfig(loss="bce_sum", focal_gamma=2.0)), theirs.sum())
    weighted = LossConfig(loss="bce_sum", focal_gamma=2.0, class_weights_K=WEIGHTS)
    expected = (theirs * WEIGHTS[LABELS][:, None]).sum()
    torch.testing.assert_close(sum_loss(LOGITS, PLAIN, weighted), expected)


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_the_focal_gradient_stays_finite_where_the_network_is_certain(loss: Loss) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    targets = MixedLabels(labels_B=torch.tensor([0, 0]))
    sum_loss(logits, targets, LossConfig(loss=loss, focal_gamma=0.5)).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
