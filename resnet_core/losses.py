"""Training losses, summed over the images of a batch; the caller divides once, by the number of images of all ranks.

Shapes: B images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_core.config import Loss, LossWeightsConfig, OptimConfig
from resnet_core.mixed_labels import MixedLabels

_LEAST = 1e-7


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Settings of the loss; the fields have the names of the recipe's sections `optim` and `loss`."""

    loss: Loss = "cross_entropy"
    label_smoothing: float = 0.0
    bce_threshold: float = 0.0
    focal_gamma: float = 0.0
    class_weights_K: Tensor | None = None  # float32, on the model's device; None = all 1

    @classmethod
    def of(cls, config: OptimConfig, weights: LossWeightsConfig, class_weights_K: Tensor | None = None) -> LossConfig:
        return cls(
            loss=config.loss,
            label_smoothing=config.label_smoothing,
            bce_threshold=config.bce_threshold,
            focal_gamma=weights.focal_gamma,
            class_weights_K=class_weights_K,
        )


def sum_loss(logits_BK: Tensor, targets: MixedLabels, config: LossConfig) -> Tensor:
    """Return the sum of the losses of the images: a 0-d tensor.

    "cross_entropy" is the softmax cross entropy with smoothed targets. "bce" is the binary cross entropy of each class,
    averaged over the classes (timm's BinaryCrossEntropy; Wightman et al. 2021, Section 2.1). "bce_sum" adds the
    classes up instead (MosaicML Composer), so its gradient is K times as large.

    Class weights multiply each class's term of the cross entropy, as in torch. With bce they multiply the loss of an
    image by the weight of its class (Cui et al. 2019, arXiv 1901.05555). A focal gamma above 0 multiplies each term by
    (1 - p)^gamma (Lin et al. 2017, arXiv 1708.02002, Equation 4).
    """
    if config.loss == "cross_entropy":
        return _cross_entropy(logits_BK, targets, config)
    dense_BK = dense_targets(targets, logits_BK.shape[1], config.label_smoothing).to(logits_BK.dtype)
    if config.bce_threshold:
        dense_BK = (dense_BK > config.bce_threshold).to(logits_BK.dtype)
    losses_BK = _binary(logits_BK, dense_BK, config.focal_gamma)
    if config.class_weights_K is not None:
        losses_BK = losses_BK * _image_weights(targets, config.class_weights_K)[:, None]
    total = losses_BK.sum()
    return total if config.loss == "bce_sum" else total / logits_BK.shape[1]


def _binary(logits_BK: Tensor, dense_BK: Tensor, focal_gamma: float) -> Tensor:
    losses_BK = F.binary_cross_entropy_with_logits(logits_BK, dense_BK, reduction="none")
    if not focal_gamma:
        return losses_BK
    true_BK = logits_BK.sigmoid()
    return losses_BK * _hardness(true_BK * dense_BK + (1 - true_BK) * (1 - dense_BK), focal_gamma)


def _hardness(probability: Tensor, gamma: float) -> Tensor:
    """Return (1 - p)^gamma. It is kept off zero, where the gradient for gamma below 1 is infinite."""
    return (1 - probability).clamp(min=_LEAST) ** gamma


def _image_weights(targets: MixedLabels, class_weights_K: Tensor) -> Tensor:
    """Return the weight of each image, float32 B: that of its class, or the mean of those that it mixes."""
    weights_B = class_weights_K[targets.labels_B]
    if targets.other_B is None or targets.share_B is None:
        return weights_B
    return torch.lerp(class_weights_K[targets.other_B], weights_B, targets.share_B)


def dense_targets(targets: MixedLabels, num_classes: int, label_smoothing: float) -> Tensor:
    """Return smoothed targets, float32 B x K: the weight of each class for each image.

    Smoothing e gives 1 - e + e / K to the class itself and e / K to every other (Szegedy et al. 2016, Section 7).
    Multi-label targets, whose rows have any sum, become 1 - e / 2 and e / 2.
    """
    if targets.multi_label:
        return targets.dense(num_classes) * (1 - label_smoothing) + label_smoothing / 2
    return targets.dense(num_classes) * (1 - label_smoothing) + label_smoothing / num_classes


def _cross_entropy(logits_BK: Tensor, targets: MixedLabels, config: LossConfig) -> Tensor:
    weights_K, smoothing = config.class_weights_K, config.label_smoothing
    if config.focal_gamma:
        logs_BK = logits_BK.log_softmax(dim=1)
        terms_BK = -dense_targets(targets, logits_BK.shape[1], smoothing) * logs_BK
        terms_BK = terms_BK * _hardness(logs_BK.exp(), config.focal_gamma)
        return (terms_BK if weights_K is None else terms_BK * weights_K).sum()
    if targets.other_B is None or targets.share_B is None:
        return F.cross_entropy(logits_BK, targets.labels_B, weights_K, reduction="sum", label_smoothing=smoothing)
    # two lookups of labels instead of a dense B x K target
    first_B, other_B = (
        F.cross_entropy(logits_BK, labels_B, weights_K, reduction="none", label_smoothing=smoothing)
        for labels_B in (targets.labels_B, targets.other_B)
    )
    return torch.lerp(other_B, first_B, targets.share_B).sum()
