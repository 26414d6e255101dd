"""What the images of a batch show: one class each, or two after mixing.

Shapes: B images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """Image i is `labels_B[i]` with weight `share_B[i]`, and `other_B[i]` with the rest.

    Without `other_B` and `share_B` every image is wholly of its one class.
    """

    labels_B: Tensor  # int64
    other_B: Tensor | None = None  # int64
    share_B: Tensor | None = None  # float32, in [0, 1]

    @property
    def dominant_B(self) -> Tensor:
        """The class that has the larger share of each image; of equal shares, `labels_B`."""
        if self.other_B is None or self.share_B is None:
            return self.labels_B
        half = 0.5
        return torch.where(self.share_B >= half, self.labels_B, self.other_B)
