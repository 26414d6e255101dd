"""Exact evaluation: every image once, sums over batches and ranks, one division at the end.

Shapes: B images, H and W pixels, C = 3 channels, K classes, N mistakes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.distributed import concatenate_ranks, gather_rows, max_over_ranks_, share_buffers, sum_over_ranks_
from resnet_core.evaluation.class_scores import ClassScores
from resnet_core.step import StepConfig, eval_step

TOP = 5
CALIBRATION_BINS = 15
MATRIX_CLASSES = 1024
"""Maximum number of classes for a K x K confusion matrix (8 MB); with more, only the pairs that occur are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalBatch:
    """Images to evaluate, on the model's device."""

    images_BHWC: Tensor  # uint8
    labels_B: Tensor  # int64; multi-label: uint8 B x K
    ids_B: Tensor  # int64, unique in the data set


class ScoreSums(Protocol):
    """What an evaluation adds up over batches and ranks."""

    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """Add a batch."""

    def all_reduce(self) -> None:
        """Combine all ranks; every rank must call this."""

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name."""

    def details(self) -> dict[str, Tensor]:
        """Return what plots of classes need."""


class EvalSums:
    """Sums from which a split's metrics are computed; top-1, counts and classes come from the pairs of classes."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.top5 = torch.zeros((), dtype=torch.int64, device=device)
        self._matrix: Tensor | None = None
        self._counts = PairCounts(num_classes, device)
        if num_classes <= MATRIX_CLASSES:
            self._matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        self.calibration = torch.zeros(CALIBRATION_BINS, dtype=torch.float64, device=device)
        """Number of correct images minus the sum of confidences, per bin of confidence.

        The order of additions does not matter: up to a million images per bin, float64 keeps every bit of a float32
        confidence.
        """

    @property
    def confusion(self) -> Tensor:
        """Return the number of images, int64 K x K: row = label, column = prediction.

        Raises:
            ValueError: there are more than `MATRIX_CLASSES` classes.
        """
        if self._matrix is None:
            raise ValueError(f"{self.num_classes:,} classes are more than {MATRIX_CLASSES:,}: read `pairs` instead")
        return self._matrix

    @confusion.setter
    def confusion(self, images_KK: Tensor) -> None:
        self._matrix = images_KK

    @property
    def pairs(self) -> Tensor:
        """Return the pairs that occur, int64 P x 3: label, prediction, number of images; sorted."""
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
        """Return the number of images of each class, int64 K."""
        return self._by_class(self.pairs) if self._matrix is None else self._matrix.sum(dim=1)

    @property
    def class_correct(self) -> Tensor:
        """Return the number of correctly predicted images of each class, int64 K."""
        if self._matrix is not None:
            return self._matrix.diagonal()
        pairs_P3 = self.pairs
        return self._by_class(pairs_P3[pairs_P3[:, 0] == pairs_P3[:, 1]])

    @property
    def class_predicted(self) -> Tensor:
        """Return the number of images that are put into each class, int64 K."""
        return self._by_class(self.pairs, 1) if self._matrix is None else self._matrix.sum(dim=0)

    @property
    def classes(self) -> ClassScores:
        """Return precision, recall and F1 of the classes."""
        return ClassScores(count=self.class_counts, predicted=self.class_predicted, correct=self.class_correct)

    def _by_class(self, pairs_P3: Tensor, column: int = 0) -> Tensor:
        return pairs_P3.new_zeros(self.num_classes).index_add_(0, pairs_P3[:, column], pairs_P3[:, 2])

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
        """Add up the sums of all ranks; every rank must call this."""
        for sums in (self.loss, self.top5, self.calibration):
            sum_over_ranks_(sums)
        if self._matrix is None:
            self._counts.all_reduce()
        else:
            sum_over_ranks_(self._matrix)

    def metrics(self) -> dict[str, float]:
        """Return means over the images, and over the classes (`ClassScores.means`).

        Those over the images are "loss", "accuracy", "top5_accuracy" and "calibration_error": the expected calibration
        error in equal bins (Guo et al. 2017, arXiv 1706.04599, Equation 3).
        This waits for the device.

        Raises:
            ValueError: no image was evaluated.
        """
        gap = self.calibration.abs().sum()
        over_classes = self.classes.means()
        sums = torch.stack([self.loss, self.top1, self.top5, gap, self.count, *over_classes.values()])
        loss, top1, top5, gap, count, *means = sums.tolist()
        if not count:
            raise ValueError("nothing was scored: the split has no images")
        return {
            "loss": loss / count,
            "accuracy": top1 / count,
            "top5_accuracy": top5 / count,
            "calibration_error": gap / count,
            **dict(zip(over_classes, means, strict=True)),
        }

    def details(self) -> dict[str, Tensor]:
        """Return `confusion` up to `MATRIX_CLASSES` classes, else `pairs`, int32."""
        counts = {"pairs": self.pairs} if self._matrix is None else {"confusion": self._matrix}
        return {name: values.to("cpu", torch.int32) for name, values in counts.items()}

    def class_accuracy(self) -> Tensor:
        """Return the accuracy on each class, float64 K; NaN for a class without images."""
        return self.class_correct.double() / self.class_counts


def _calibration_bin(confidence_B: Tensor) -> Tensor:
    """Return the index of each confidence's bin; bin m of M holds (m - 1) / M < confidence <= m / M."""
    return ((confidence_B * CALIBRATION_BINS).ceil().long() - 1).clamp(0, CALIBRATION_BINS - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistakes:
    """Wrong predictions with the highest confidence, highest first; N is the limit."""

    probability_N: Tensor  # float32, of the predicted class; below 0 = an empty slot
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
        """Return the mistakes after a batch; the host does not wait for the device."""
        probability_B, predicted_B = logits_BK.softmax(dim=1).max(dim=1)
        found = Mistakes(
            probability_N=torch.where(predicted_B == batch.labels_B, -1.0, probability_B),
            ids_N=batch.ids_B,
            labels_N=batch.labels_B,
            predicted_N=predicted_B,
            images_NHWC=batch.images_BHWC,
        )
        limit = len(self.ids_N)
        pairs = zip(self._columns(), found._most_confident(limit)._columns(), strict=True)
        return Mistakes(**{name: torch.cat([old, new]) for (name, old), (_, new) in pairs})._most_confident(limit)

    def over_ranks(self) -> Mistakes:
        """Return the mistakes of all ranks; every rank must call this, with the same limit and image size."""
        everyone = Mistakes(**{name: concatenate_ranks(column) for name, column in self._columns()})
        return everyone._most_confident(len(self.ids_N))

    def filled(self) -> Mistakes:
        """Return the mistakes without empty slots, on the CPU."""
        wrong = self.probability_N >= 0
        return Mistakes(**{name: column[wrong].cpu() for name, column in self._columns()})

    def _most_confident(self, limit: int) -> Mistakes:
        order = self.probability_N.argsort(descending=True, stable=True)[:limit]
        return Mistakes(**{name: column[order] for name, column in self._columns()})

    def _columns(self) -> list[tuple[str, Tensor]]:
        return [(column.name, getattr(self, column.name)) for column in fields(self)]


def evaluate(
    model: nn.Module, batches: Iterable[EvalBatch], config: StepConfig, *, num_classes: int, max_mistakes: int = 0
) -> tuple[EvalSums, Mistakes]:
    """Evaluate rank 0's model on each rank's `batches`, all of one image size; return the result over all ranks.

    Every rank must call this. The sums do not depend on the split of images into batches and ranks. The model's mode
    is restored.
    """
    sums = EvalSums(num_classes, next(model.parameters()).device)
    return sums, evaluate_into(sums, model, batches, config, max_mistakes=max_mistakes)


def evaluate_into(
    sums: ScoreSums, model: nn.Module, batches: Iterable[EvalBatch], config: StepConfig, *, max_mistakes: int = 0
) -> Mistakes:
    """Add an evaluation, as of `evaluate`, to empty sums; return the mistakes."""
    device = next(model.parameters()).device
    mistakes: Mistakes | None = None
    share_buffers(model)
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            logits_BK = eval_step(model, batch.images_BHWC, config)
            sums.update(logits_BK, batch.labels_B)
            if not max_mistakes:
                continue
            if mistakes is None:
                height, width = batch.images_BHWC.shape[1:3]
                mistakes = Mistakes.empty(max_mistakes, height, width, device)
            mistakes = mistakes.with_batch(batch, logits_BK)
    finally:
        model.train(was_training)
    sums.all_reduce()
    return _of_common_size(mistakes, max_mistakes, device).over_ranks().filled()


def _of_common_size(mistakes: Mistakes | None, limit: int, device: torch.device) -> Mistakes:
    """Return the mistakes; a rank without images gets empty slots of the other ranks' image size."""
    own_size = mistakes.images_NHWC.shape[1:3] if mistakes else (0, 0)
    height, width = max_over_ranks_(torch.tensor(own_size)).tolist()
    return mistakes or Mistakes.empty(limit, height, width, device)


class PairCounts:
    """Number of images per (label, prediction), for the pairs that occur: at most one pair per image."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        self._parts: list[tuple[Tensor, Tensor]] = [(nothing, nothing)]  # (label * K + prediction, images)

    def add(self, labels_B: Tensor, predicted_B: Tensor) -> None:
        """Count the pairs of a batch; the host does not wait for the device."""
        cells_B = labels_B * self.num_classes + predicted_B
        self._parts.append((cells_B, torch.ones_like(cells_B)))

    def all_reduce(self) -> None:
        """Add up the counts of all ranks; every rank must call this."""
        everyone = gather_rows(torch.stack(self._merged(), dim=1))
        self._parts = [(everyone[:, 0], everyone[:, 1])]

    @property
    def rows(self) -> Tensor:
        """Return int64 P x 3: label, prediction, number of images; sorted by label, then by prediction."""
        cells_P, images_P = self._merged()
        return torch.stack([cells_P // self.num_classes, cells_P % self.num_classes, images_P], dim=1)

    def _merged(self) -> tuple[Tensor, Tensor]:
        """Return each pair once, sorted, and its number of images."""
        cells, images = (torch.cat(column) for column in zip(*self._parts, strict=True))
        cells_P, places = cells.unique(return_inverse=True)
        merged = cells_P, torch.zeros_like(cells_P).index_add_(0, places, images)
        self._parts = [merged]
        return merged
