"""Compare two models on the same images: which one is better, by how much, how surely, and on which classes.

Shapes: N images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from infra.proportions import Paired
from pipelines.evaluation.predictions import Predictions, to_parquet

FALSE_DISCOVERIES = 0.05
"""Expected fraction of unchanged classes among those that are reported as changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassChange:
    """The effect of a change of models on one class."""

    name: str
    paired: Paired
    adjusted_p: float
    """p-value of McNemar's exact test, adjusted for all classes that have images (Benjamini and Hochberg 1995).

    The tests are independent, since each image has one class.
    """

    @property
    def significant(self) -> bool:
        return self.adjusted_p <= FALSE_DISCOVERIES


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Predictions of two models, `new` and `old`. Row i of both belongs to the same image."""

    new: Predictions
    old: Predictions
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not (np.array_equal(self.new.id, self.old.id) and np.array_equal(self.new.label, self.old.label)):
            raise UserError("the two models were not shown the same images: name one data set with --data and --split")

    @property
    def paired(self) -> Paired:
        return _paired(self.new.correct, self.old.correct)

    @property
    def agreement(self) -> float:
        """Fraction of the images that both models put into the same class, right or wrong."""
        return float((self.new.predicted == self.old.predicted).mean())

    @property
    def wins(self) -> npt.NDArray[np.int64]:
        """Rows that only the new model gets right, sorted by the new model's probability, highest first."""
        return _most_confident(self.new.correct & ~self.old.correct, self.new)

    @property
    def losses(self) -> npt.NDArray[np.int64]:
        """Rows that only the old model gets right, sorted by the new model's probability, highest first."""
        return _most_confident(self.old.correct & ~self.new.correct, self.new)

    def class_changes(self) -> list[ClassChange]:
        """Return the change of every class that has images, in the order of the classes."""
        from scipy.stats import false_discovery_control

        labels = self.new.label
        present, counts = np.unique(labels, return_counts=True)
        of_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
        changes = [_paired(self.new.correct[rows], self.old.correct[rows]) for rows in of_class]
        adjusted = false_discovery_control([change.p_value for change in changes])
        return [
            ClassChange(name=self.class_names[label], paired=change, adjusted_p=float(p))
            for label, change, p in zip(present.tolist(), changes, adjusted, strict=True)
        ]

    def to_parquet(self) -> bytes:
        """Return a Parquet file with the columns id and label, and with predicted and probability of both models."""
        columns: dict[str, npt.NDArray[Any]] = {"id": self.new.id, "label": self.new.label}
        for name, one in (("old", self.old), ("new", self.new)):
            columns |= {f"{name}_predicted": one.predicted, f"{name}_probability": one.probability}
        return to_parquet(columns)


def _paired(new: npt.NDArray[np.bool_], old: npt.NDArray[np.bool_]) -> Paired:
    return Paired(wins=int((new & ~old).sum()), losses=int((old & ~new).sum()), count=len(new))


def _most_confident(rows: npt.NDArray[np.bool_], predictions: Predictions) -> npt.NDArray[np.int64]:
    (chosen,) = np.nonzero(rows)
    return chosen[np.argsort(-predictions.probability[chosen], kind="stable")]
