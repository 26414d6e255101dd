"""Exact evaluation of segmentation: a confusion matrix over the pixels of whole images.

Shapes: B images, H and W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_core.distributed import sum_over_ranks_
from resnet_core.segmentation.loss import IGNORED


class SegmentationSums:
    """Number of pixels of each pair of classes: integers, so the order and the split of images do not matter."""

    def __init__(self, num_classes: int, device: torch.device, *, ignore_index: int = IGNORED) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        """Pixels, int64 K x K: row = label, column = prediction."""

    def update(self, logits_BKHW: Tensor, masks_BHW: Tensor) -> None:
        """Add images; logits of another size than the mask are resized to it, bilinearly."""
        if logits_BKHW.shape[-2:] != masks_BHW.shape[-2:]:
            logits_BKHW = F.interpolate(logits_BKHW, size=masks_BHW.shape[-2:], mode="bilinear", align_corners=False)
        self.add(logits_BKHW.argmax(dim=1), masks_BHW)

    def add(self, predicted_BHW: Tensor, masks_BHW: Tensor) -> None:
        """Add predicted classes. The host does not wait for the device.

        Pixels whose label is `ignore_index` do not count.

        Raises:
            IndexError: another label is outside [0, K); on a GPU the device reports it.
        """
        labels = masks_BHW.long().flatten()
        counted = labels != self.ignore_index
        cells = torch.where(counted, labels * self.num_classes + predicted_BHW.long().flatten(), 0)
        self.confusion.view(-1).index_add_(0, cells, counted.long())

    def all_reduce(self) -> None:
        """Add up the pixels of all ranks; every rank must call this."""
        sum_over_ranks_(self.confusion)

    @property
    def iou(self) -> Tensor:
        """Return the intersection over union of each class, float64 K; NaN for one neither labelled nor predicted."""
        right = self.confusion.diagonal()
        return right.double() / (self.confusion.sum(dim=0) + self.confusion.sum(dim=1) - right)

    def metrics(self) -> dict[str, float]:
        """Return "mean_iou", the mean of `iou` without NaN, and "pixel_accuracy". This waits for the device.

        Raises:
            ValueError: no pixel with a class was scored.
        """
        pixels = int(self.confusion.sum())
        if not pixels:
            raise ValueError("nothing was scored: no image of the split has a pixel with a class")
        return {
            "mean_iou": float(self.iou.nanmean()),
            "pixel_accuracy": int(self.confusion.diagonal().sum()) / pixels,
        }

    def details(self) -> dict[str, Tensor]:
        """Return "confusion", int64 K x K, and "iou", float64 K, on the CPU."""
        return {"confusion": self.confusion.cpu(), "iou": self.iou.cpu()}
