"""Exact evaluation of multi-label networks: average precision per class, over all images of all ranks.

Shapes: B images of a batch, N images in all, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_core.distributed import gather_rows

_LEAST = float(torch.finfo(torch.float32).tiny)
_HALF = 0.5


class MultiLabelSums:
    """The scores of all images, 5 bytes for each image and class, from which a split's metrics are computed.

    Average precision needs the order of all scores, so it cannot be summed batch by batch.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes, self._device = num_classes, device
        self._parts: list[tuple[Tensor, Tensor]] = []

    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """Add a batch; `labels_B` is B x K, with 1 for each class of an image, else 0."""
        self.add(logits_BK.float().sigmoid(), labels_B)

    def add(self, probabilities_BK: Tensor, labels_BK: Tensor) -> None:
        """Add a batch of probabilities."""
        self._parts.append((probabilities_BK, labels_BK.to(torch.uint8)))

    def all_reduce(self) -> None:
        """Collect the scores of all ranks on every rank; every rank must call this."""
        scores, labels = self._joined()
        self._parts = [(gather_rows(scores), gather_rows(labels))]

    @property
    def rates(self) -> LabelRates:
        """Return the average precision and the best threshold of each class."""
        return LabelRates.of(*self._joined())

    def metrics(self) -> dict[str, float]:
        """Return "mean_average_precision", "macro_f1", "accuracy" and "loss".

        The loss is the binary cross entropy, averaged over classes; the accuracy is the share of (image, class) pairs
        that a threshold of 0.5 decides correctly; `macro_f1` uses the best threshold of each class. This waits for the
        device.

        Raises:
            ValueError: no image was evaluated.
        """
        scores_NK, labels_NK = self._joined()
        if not len(scores_NK):
            raise ValueError("nothing was scored: the split has no images")
        scores, truth = scores_NK.double(), labels_NK.bool()
        right = torch.where(truth, scores, 1 - scores).clamp(min=_LEAST)
        rates = self.rates
        present = ~rates.average_precision.isnan()
        return {
            "loss": float(-right.log().mean()),
            "accuracy": float(((scores > _HALF) == truth).double().mean()),
            "mean_average_precision": float(rates.average_precision[present].mean()) if present.any() else 0.0,
            "macro_f1": float(rates.f1[present].mean()) if present.any() else 0.0,
        }

    def details(self) -> dict[str, Tensor]:
        """Return average_precision, threshold and count of each class."""
        rates = self.rates
        return {
            "average_precision": rates.average_precision,
            "threshold": rates.threshold,
            "count": rates.count.to(torch.int32),
        }

    def _joined(self) -> tuple[Tensor, Tensor]:
        if not self._parts:
            nothing = torch.zeros(0, self.num_classes, device=self._device)
            return nothing, nothing.to(torch.uint8)
        scores, labels = (torch.cat(column) for column in zip(*self._parts, strict=True))
        self._parts = [(scores, labels)]
        return scores, labels


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRates:
    """Ranking quality of each class, float64 [K] on the CPU; NaN for a class without images."""

    average_precision: Tensor
    threshold: Tensor  # the score from which on the class is predicted: the one with the highest F1
    f1: Tensor  # at that threshold
    count: Tensor  # int64, images of the class

    @classmethod
    def of(cls, scores_NK: Tensor, labels_NK: Tensor) -> LabelRates:
        """Compare scores (higher = more likely) with labels (1 = the image has the class)."""
        columns = [
            _rates(scores, labels) for scores, labels in zip(scores_NK.cpu().T, labels_NK.cpu().long().T, strict=True)
        ]
        precision, threshold, f1 = torch.tensor(columns, dtype=torch.float64).T
        return cls(average_precision=precision, threshold=threshold, f1=f1, count=labels_NK.cpu().long().sum(dim=0))


def _rates(scores_N: Tensor, labels_N: Tensor) -> tuple[float, float, float]:
    """Return average precision, best threshold and its F1 of one class.

    The average precision is the sum over thresholds of precision times the gain of recall, as scikit-learn's
    `average_precision_score`: equal scores are one threshold. Of equal F1, the highest threshold is taken.
    """
    positives = int(labels_N.sum())
    if not positives:
        return (float("nan"),) * 3
    ranked, order = scores_N.sort(descending=True, stable=True)
    found = labels_N[order].cumsum(dim=0)
    ends = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool)]).nonzero()[:, 0]
    hits, shown = found[ends].double(), (ends + 1).double()
    gains = hits.diff(prepend=hits.new_zeros(1)) / positives
    f1 = 2 * hits / (shown + positives)
    best = int(f1.argmax())
    return float((hits / shown * gains).sum()), float(ranked[ends[best]]), float(f1[best])
