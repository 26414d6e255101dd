"""Loss of segmentation: cross entropy over pixels.

Shapes: B images, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = 255
"""Value of a mask's pixel that has no class, as in Pascal VOC and Cityscapes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelLossConfig:
    """Settings of the loss."""

    ignore_index: int = IGNORED  # pixels of this value are left out
    auxiliary_weight: float = 0.5  # of the auxiliary head's loss; torchvision's references have 0.5
    class_weights_K: Tensor | None = None  # float32, on the model's device; None = all 1


def sum_pixel_loss(
    logits: Mapping[str, Tensor], masks_BHW: Tensor, config: PixelLossConfig | None = None
) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses of all pixels, and the sum of the pixels' weights: 0-d tensors.

    The caller divides once, by the weights of all ranks and microbatches: then the loss does not depend on how a batch
    is split.

    Args:
        logits: "out" and, if there is an auxiliary head, "aux", B x K x H x W.
        masks_BHW: classes of the pixels, uint8 or int64.
        config: None = the defaults.
    """
    config = config or PixelLossConfig()
    classes_BHW = masks_BHW.long()
    total = _sum(logits["out"], classes_BHW, config)
    if "aux" in logits:
        total = total + config.auxiliary_weight * _sum(logits["aux"], classes_BHW, config)
    labelled_BHW = classes_BHW != config.ignore_index
    if config.class_weights_K is None:
        return total, labelled_BHW.sum().to(total.dtype)
    weights_BHW = config.class_weights_K[torch.where(labelled_BHW, classes_BHW, 0)]
    return total, torch.where(labelled_BHW, weights_BHW, 0).sum().to(total.dtype)


def pixel_loss(logits: Mapping[str, Tensor], masks_BHW: Tensor, config: PixelLossConfig | None = None) -> Tensor:
    """Return the mean loss of the pixels, as torchvision's reference scripts; 0 if no pixel has a class.

    Arguments are those of `sum_pixel_loss`.
    """
    total, weight = sum_pixel_loss(logits, masks_BHW, config)
    return total / torch.where(weight > 0, weight, torch.ones_like(weight))


def _sum(logits_BKHW: Tensor, classes_BHW: Tensor, config: PixelLossConfig) -> Tensor:
    return F.cross_entropy(
        logits_BKHW.float() if logits_BKHW.dtype.itemsize < torch.float32.itemsize else logits_BKHW,
        classes_BHW,
        config.class_weights_K,
        ignore_index=config.ignore_index,
        reduction="sum",
    )
