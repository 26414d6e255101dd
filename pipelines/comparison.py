"""Two models on the same images: which one is better, by how much, how surely, and on which classes and pictures.

Shapes: N images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from infra.proportions import Paired
from pipelines.data.predictions import Predictions, to_parquet

FALSE_DISCOVERIES = 0.05
"""Of the classes that are said to have changed, the share that may not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassChange:
    """What a change of models does to one class."""

    name: str
    paired: Paired
    adjusted_p: float
    """Of McNemar's exact test, after Benjamini and Hochberg (1995) over all classes that have images.

    The tests are independent, since no image is of two classes.
    """

    @property
    def significant(self) -> bool:
        return self.adjusted_p <= FALSE_DISCOVERIES


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """`new` against `old`, row by row the same images."""

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
        """Share of the images that both put into the same class, right or wrong."""
        return float((self.new.predicted == self.old.predicted).mean())

    @property
    def wins(self) -> npt.NDArray[np.int64]:
        """Rows that only the new model gets right; those that it is surest of first."""
        return _surest(self.new.correct & ~self.old.correct, self.new)

    @property
    def losses(self) -> npt.NDArray[np.int64]:
        """Rows that only the old model gets right; those that the new one is surest of first."""
        return _surest(self.old.correct & ~self.new.correct, self.new)

    def class_changes(self) -> list[ClassChange]:
        """Of every class that has images, in the order of the classes."""
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
        """Columns id, label, and predicted and probability of both models."""
        columns: dict[str, npt.NDArray[Any]] = {"id": self.new.id, "label": self.new.label}
        for name, one in (("old", self.old), ("new", self.new)):
            columns |= {f"{name}_predicted": one.predicted, f"{name}_probability": one.probability}
        return to_parquet(columns)


def _paired(new: npt.NDArray[np.bool_], old: npt.NDArray[np.bool_]) -> Paired:
    return Paired(wins=int((new & ~old).sum()), losses=int((old & ~new).sum()), count=len(new))


def _surest(rows: npt.NDArray[np.bool_], by: Predictions) -> npt.NDArray[np.int64]:
    (chosen,) = np.nonzero(rows)
    return chosen[np.argsort(-by.probability[chosen], kind="stable")]
