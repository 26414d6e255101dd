"""How often each pair of classes occurs, where a matrix of all pairs would be larger than the model."""

from __future__ import annotations

import torch
from torch import Tensor

from resnet_core.collective import gather_rows


class PairCounts:
    """Images by (label, prediction), of the pairs that occur: at most as many as images were scored."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        self._parts: list[tuple[Tensor, Tensor]] = [(nothing, nothing)]  # (label * K + prediction, images)

    def add(self, labels_B: Tensor, predicted_B: Tensor) -> None:
        """Count a batch; the host does not wait for the device."""
        cells_B = labels_B * self.num_classes + predicted_B
        self._parts.append((cells_B, torch.ones_like(cells_B)))

    def all_reduce(self) -> None:
        """Add up the counts of all ranks, all of which call this."""
        everyone = gather_rows(torch.stack(self._merged(), dim=1))
        self._parts = [(everyone[:, 0], everyone[:, 1])]

    @property
    def rows(self) -> Tensor:
        """Int64 P x 3: label, prediction, images; in the order of labels, then of predictions."""
        cells_P, images_P = self._merged()
        return torch.stack([cells_P // self.num_classes, cells_P % self.num_classes, images_P], dim=1)

    def _merged(self) -> tuple[Tensor, Tensor]:
        """Each pair once, in order."""
        cells, images = (torch.cat(column) for column in zip(*self._parts, strict=True))
        cells_P, places = cells.unique(return_inverse=True)
        merged = cells_P, torch.zeros_like(cells_P).index_add_(0, places, images)
        self._parts = [merged]
        return merged
