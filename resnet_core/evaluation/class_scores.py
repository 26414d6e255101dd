"""Precision, recall and F1 of classes, from three counts per class.

Shapes: K classes; leading dimensions, such as resamples, are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScores:
    """Scores of each class and their means over classes, as scikit-learn defines them with `zero_division=0`."""

    count: Tensor  # [..., K] images of the class
    predicted: Tensor  # [..., K] images that are put into the class
    correct: Tensor  # [..., K] images of the class that are put into it

    @property
    def precision(self) -> Tensor:
        """Return the share of correct predictions of each class, float64; 0 for a class that is never predicted."""
        return _ratio(self.correct, self.predicted)

    @property
    def recall(self) -> Tensor:
        """Return the share of each class's images that are found, float64; 0 for a class without images."""
        return _ratio(self.correct, self.count)

    @property
    def f1(self) -> Tensor:
        """Return the harmonic mean of precision and recall, float64; 0 if both are."""
        return _ratio(2 * self.correct, self.count + self.predicted)

    def means(self) -> dict[str, Tensor]:
        """Return means over classes: "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1".

        The balanced accuracy is the mean recall of the classes that have images. The others are means over the classes
        that have images or predictions.
        """
        labelled, used = self.count > 0, (self.count > 0) | (self.predicted > 0)
        return {
            "balanced_accuracy": _mean(self.recall, labelled),
            "macro_precision": _mean(self.precision, used),
            "macro_recall": _mean(self.recall, used),
            "macro_f1": _mean(self.f1, used),
        }


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part.double() / whole.clamp(min=1), 0.0)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, 0.0).sum(dim=-1) / chosen.sum(dim=-1)
