"""Labels of a batch: one class per image, two after mixing, or any number of classes (multi-label).

Shapes: B images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedLabels:
    """Labels of image i: `labels_B[i]` with weight `share_B[i]`, and `other_B[i]` with weight 1 - `share_B[i]`.

    Without `other_B` and `share_B` every image has one class with weight 1.
    """

    labels_B: Tensor  # int64; multi-label: uint8 B x K, 1 for each class of an image
    other_B: Tensor | None = None  # of the same form
    share_B: Tensor | None = None  # float32, in [0, 1]

    @property
    def multi_label(self) -> bool:
        return self.labels_B.ndim > 1

    def dense(self, num_classes: int) -> Tensor:
        """Return the weight of each class for each image, float32 B x K."""
        hot_BK = self._hot(self.labels_B, num_classes)
        if self.other_B is None or self.share_B is None:
            return hot_BK
        return torch.lerp(self._hot(self.other_B, num_classes), hot_BK, self.share_B[:, None])

    def hits(self, logits_BK: Tensor) -> Tensor:
        """Return the number of images that are classified correctly, a 0-d tensor.

        A multi-label image counts by the share of its classes that a probability of 0.5 decides correctly; of mixed
        images, the one with the larger weight counts.
        """
        if self.multi_label:
            half = 0.5
            return ((logits_BK > 0) == (self.dense(logits_BK.shape[1]) > half)).double().mean(dim=1).sum()
        return (logits_BK.argmax(dim=1) == self.dominant_B).sum()

    def _hot(self, labels: Tensor, num_classes: int) -> Tensor:
        return labels.float() if self.multi_label else F.one_hot(labels, num_classes).float()

    @property
    def dominant_B(self) -> Tensor:
        """Return the class with the larger weight for each image; `labels_B` if the weights are equal."""
        if self.other_B is None or self.share_B is None:
            return self.labels_B
        half = 0.5
        return torch.where(self.share_B >= half, self.labels_B, self.other_B)
