"""Exact evaluation: every image once, sums that are added over batches and ranks, one division at the end.

Shapes: B images, H and W pixels, C = 3 channels, K classes, N mistakes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.collective import concatenate_ranks, max_over_ranks_, share_buffers, sum_over_ranks_
from resnet_core.evaluation.pairs import PairCounts
from resnet_core.step import StepConfig, eval_step

TOP = 5
CALIBRATION_BINS = 15
MATRIX_CLASSES = 1024
"""Most classes whose pairs are counted in a K x K matrix, 8 MB; of more, only the pairs that occur are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalBatch:
    """Images to score, on the model's device."""

    images_BHWC: Tensor  # uint8
    labels_B: Tensor  # int64
    ids_B: Tensor  # int64, unique in the data set


class EvalSums:
    """Sums that a split's metrics are made of. Top-1, the count and the classes are read off the pairs of classes."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.top5 = torch.zeros((), dtype=torch.int64, device=device)
        self._matrix: Tensor | None = None
        self._counts = PairCounts(num_classes, device)
        if num_classes <= MATRIX_CLASSES:
            self._matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self.calibration = torch.zeros(CALIBRATION_BINS, dtype=torch.float64, device=device)
        """Images predicted right less the sum of their confidences, per bin of confidence.

        In any order the same: up to a million images a bin, float64 has room for every bit of a float32 confidence.
        """

    @property
    def confusion(self) -> Tensor:
        """K x K images: row = label, column = prediction. ValueError for more than `MATRIX_CLASSES` classes."""
        if self._matrix is None:
            raise ValueError(f"{self.num_classes:,} classes are more than {MATRIX_CLASSES:,}: read `pairs` instead")
        return self._matrix

    @confusion.setter
    def confusion(self, images_KK: Tensor) -> None:
        self._matrix = images_KK

    @property
    def pairs(self) -> Tensor:
        """Int64 P x 3: label, prediction, images, of the pairs that occur, in order."""
        if self._matrix is None:
            return self._counts.rows
        cells_P2 = self._matrix.nonzero()
        return torch.cat([cells_P2, self._matrix[cells_P2[:, 0], cells_P2[:, 1], None]], dim=1)

    @property
    def count(self) -> Tensor:
        return self.pairs[:, 2].sum() if self._matrix is None else self._matrix.sum()

    @property
    def top1(self) -> Tensor:
        return self.class_correct.sum()

    @property
    def class_counts(self) -> Tensor:
        """Int64 K: images of each class."""
        return self._by_class(self.pairs) if self._matrix is None else self._matrix.sum(dim=1)

    @property
    def class_correct(self) -> Tensor:
        """Int64 K: images of each class that were predicted right."""
        if self._matrix is not None:
            return self._matrix.diagonal()
        pairs_P3 = self.pairs
        return self._by_class(pairs_P3[pairs_P3[:, 0] == pairs_P3[:, 1]])

    def _by_class(self, pairs_P3: Tensor) -> Tensor:
        return pairs_P3.new_zeros(self.num_classes).index_add_(0, pairs_P3[:, 0], pairs_P3[:, 2])

    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        ranked = logits_BK.topk(min(TOP, self.num_classes), dim=1).indices
        predicted_B = ranked[:, 0]
        if self._matrix is None:
            self._counts.add(labels_B, predicted_B)
        else:
            cells_B = labels_B * self.num_classes + predicted_B
            self._matrix.view(-1).index_add_(0, cells_B, torch.ones_like(cells_B))
        self.top5 += (ranked == labels_B[:, None]).any(dim=1).sum()
        self.loss += F.cross_entropy(logits_BK, labels_B, reduction="none").sum(dtype=torch.float64)
        confidence_B = logits_BK.softmax(dim=1).amax(dim=1)
        excess_B = (predicted_B == labels_B).double() - confidence_B
        self.calibration.index_add_(0, _calibration_bin(confidence_B), excess_B)

    def all_reduce(self) -> None:
        """Add up the sums of all ranks, all of which call this."""
        for sums in (self.loss, self.top5, self.calibration):
            sum_over_ranks_(sums)
        if self._matrix is None:
            self._counts.all_reduce()
        else:
            sum_over_ranks_(self._matrix)

    def metrics(self) -> dict[str, float]:
        """Means: "loss", "accuracy", "top5_accuracy", "calibration_error".

        The last is the expected calibration error in equal bins (Guo et al. 2017, arXiv 1706.04599, Equation 3).
        ValueError if nothing was scored; waits for the device.
        """
        gap = self.calibration.abs().sum()
        loss, top1, top5, gap, count = torch.stack([self.loss, self.top1, self.top5, gap, self.count]).tolist()
        if not count:
            raise ValueError("nothing was scored: the split has no images")
        return {
            "loss": loss / count,
            "accuracy": top1 / count,
            "top5_accuracy": top5 / count,
            "calibration_error": gap / count,
        }

    def class_accuracy(self) -> Tensor:
        """Float64 K: the share of each class's images that were predicted right, NaN for a class without images."""
        return self.class_correct.double() / self.class_counts


def _calibration_bin(confidence_B: Tensor) -> Tensor:
    """Index of the bin ](m - 1) / M, m / M] that each confidence is in."""
    return ((confidence_B * CALIBRATION_BINS).ceil().long() - 1).clamp(0, CALIBRATION_BINS - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistakes:
    """The wrong predictions that the model was surest of, surest first; at most as many as asked for."""

    probability_N: Tensor  # float32, of the predicted class; below 0 where the place is still empty
    ids_N: Tensor  # int64
    labels_N: Tensor  # int64
    predicted_N: Tensor  # int64
    images_NHWC: Tensor  # uint8

    @classmethod
    def empty(cls, limit: int, height: int, width: int, device: torch.device) -> Mistakes:
        nothing = torch.zeros(limit, dtype=torch.int64, device=device)
        return cls(
            probability_N=torch.full((limit,), -1.0, device=device),
            ids_N=nothing,
            labels_N=nothing,
            predicted_N=nothing,
            images_NHWC=torch.zeros(limit, height, width, 3, dtype=torch.uint8, device=device),
        )

    def with_batch(self, batch: EvalBatch, logits_BK: Tensor) -> Mistakes:
        """With the batch's wrong predictions, none of which the host has to wait for."""
        probability_B, predicted_B = logits_BK.softmax(dim=1).max(dim=1)
        news = Mistakes(
            probability_N=torch.where(predicted_B == batch.labels_B, -1.0, probability_B),
            ids_N=batch.ids_B,
            labels_N=batch.labels_B,
            predicted_N=predicted_B,
            images_NHWC=batch.images_BHWC,
        )
        limit = len(self.ids_N)
        pairs = zip(self._columns(), news._surest(limit)._columns(), strict=True)
        return Mistakes(**{name: torch.cat([old, new]) for (name, old), (_, new) in pairs})._surest(limit)

    def over_ranks(self) -> Mistakes:
        """The surest of all ranks, all of which call this with the same limit and image size."""
        everyone = Mistakes(**{name: concatenate_ranks(column) for name, column in self._columns()})
        return everyone._surest(len(self.ids_N))

    def filled(self) -> Mistakes:
        """Without the empty places, on the CPU."""
        wrong = self.probability_N >= 0
        return Mistakes(**{name: column[wrong].cpu() for name, column in self._columns()})

    def _surest(self, limit: int) -> Mistakes:
        order = self.probability_N.argsort(descending=True, stable=True)[:limit]
        return Mistakes(**{name: column[order] for name, column in self._columns()})

    def _columns(self) -> list[tuple[str, Tensor]]:
        return [(column.name, getattr(self, column.name)) for column in fields(self)]


def evaluate(
    model: nn.Module, batches: Iterable[EvalBatch], config: StepConfig, *, num_classes: int, max_mistakes: int = 0
) -> tuple[EvalSums, Mistakes]:
    """Score each rank's `batches`, all of one image size, with rank 0's model; every rank returns the result over all.

    The sums do not depend on how images are split into batches and ranks. The model's mode is restored.
    """
    device = next(model.parameters()).device
    sums = EvalSums(num_classes, device)
    mistakes: Mistakes | None = None
    share_buffers(model)
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            logits_BK = eval_step(model, batch.images_BHWC, config)
            sums.update(logits_BK, batch.labels_B)
            if mistakes is None:
                height, width = batch.images_BHWC.shape[1:3]
                mistakes = Mistakes.empty(max_mistakes, height, width, device)
            mistakes = mistakes.with_batch(batch, logits_BK)
    finally:
        model.train(was_training)
    sums.all_reduce()
    return sums, _agree(mistakes, max_mistakes, device).over_ranks().filled()


def _agree(mistakes: Mistakes | None, limit: int, device: torch.device) -> Mistakes:
    """A rank that scored nothing learns the image size from the others."""
    own_size = mistakes.images_NHWC.shape[1:3] if mistakes else (0, 0)
    height, width = max_over_ranks_(torch.tensor(own_size)).tolist()
    return mistakes or Mistakes.empty(limit, height, width, device)
