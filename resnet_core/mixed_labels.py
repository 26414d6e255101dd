"""Labels of a batch: one class per image, or two after mixing.

Shapes: B images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedLabels:
    """Labels of image i: `labels_B[i]` with weight `share_B[i]`, and `other_B[i]` with weight 1 - `share_B[i]`.

    Without `other_B` and `share_B` every image has one class with weight 1.
    """

    labels_B: Tensor  # int64
    other_B: Tensor | None = None  # int64
    share_B: Tensor | None = None  # float32, in [0, 1]

    @property
    def dominant_B(self) -> Tensor:
        """Return the class with the larger weight for each image; `labels_B` if the weights are equal."""
        if self.other_B is None or self.share_B is None:
            return self.labels_B
        half = 0.5
        return torch.where(self.share_B >= half, self.labels_B, self.other_B)
