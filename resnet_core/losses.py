"""Training losses, summed over the images of a batch; the caller divides once, by the number of images of all ranks.

Shapes: B images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_core.config import Loss, OptimConfig
from resnet_core.mixed_labels import MixedLabels


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Settings of the loss; the fields have the names of the recipe's section `optim`."""

    loss: Loss = "cross_entropy"
    label_smoothing: float = 0.0
    bce_threshold: float = 0.0

    @classmethod
    def of(cls, config: OptimConfig) -> LossConfig:
        return cls(loss=config.loss, label_smoothing=config.label_smoothing, bce_threshold=config.bce_threshold)


def sum_loss(logits_BK: Tensor, targets: MixedLabels, config: LossConfig) -> Tensor:
    """Return the sum of the losses of the images: a 0-d tensor.

    "cross_entropy" is the softmax cross entropy with smoothed targets. "bce" is the binary cross entropy of each class,
    averaged over the classes (timm's BinaryCrossEntropy; Wightman et al. 2021, Section 2.1). "bce_sum" adds the
    classes up instead (MosaicML Composer), so its gradient is K times as large.
    """
    if config.loss == "cross_entropy":
        return _cross_entropy(logits_BK, targets, config.label_smoothing)
    dense_BK = dense_targets(targets, logits_BK.shape[1], config.label_smoothing).to(logits_BK.dtype)
    if config.bce_threshold:
        dense_BK = (dense_BK > config.bce_threshold).to(logits_BK.dtype)
    total = F.binary_cross_entropy_with_logits(logits_BK, dense_BK, reduction="sum")
    return total if config.loss == "bce_sum" else total / logits_BK.shape[1]


def dense_targets(targets: MixedLabels, num_classes: int, label_smoothing: float) -> Tensor:
    """Return smoothed targets, float32 B x K: the weight of each class for each image; rows sum to one.

    Smoothing e gives 1 - e + e / K to the class itself and e / K to every other (Szegedy et al. 2016, Section 7).
    """
    hot_BK = F.one_hot(targets.labels_B, num_classes).float()
    if targets.other_B is not None and targets.share_B is not None:
        hot_BK = torch.lerp(F.one_hot(targets.other_B, num_classes).float(), hot_BK, targets.share_B[:, None])
    return hot_BK * (1 - label_smoothing) + label_smoothing / num_classes


def _cross_entropy(logits_BK: Tensor, targets: MixedLabels, label_smoothing: float) -> Tensor:
    if targets.other_B is None or targets.share_B is None:
        return F.cross_entropy(logits_BK, targets.labels_B, reduction="sum", label_smoothing=label_smoothing)
    # two lookups of labels instead of a dense B x K target
    first_B, other_B = (
        F.cross_entropy(logits_BK, labels_B, reduction="none", label_smoothing=label_smoothing)
        for labels_B in (targets.labels_B, targets.other_B)
    )
    return torch.lerp(other_B, first_B, targets.share_B).sum()
