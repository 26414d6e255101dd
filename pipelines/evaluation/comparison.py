"""Compare two models on the same images: which one is better, by how much, how surely, and on which classes.

Shapes: N images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.proportions import CONFIDENCE, Paired, Resampled
from infra.registry.gate import OverClasses
from pipelines.evaluation.predictions import Predictions, check_same_images, to_parquet

_RESAMPLES, _SEED = 2000, 0
_ADDED = 0.5  # images added to each cell of a class
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
        check_same_images(self.new, self.old)

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

    def resampled(self, measure: OverClasses) -> Resampled:
        """Return the difference of a measure over classes with its bound (docs/decisions/0039).

        The bound is that of a paired bootstrap: the images of each class are drawn anew, with the answers of both
        models. Each class gets two more images, half of one in each cell of right and wrong (Agresti and Min 2005), so
        that the bound does not collapse where the models hardly ever differ.
        """
        count = np.bincount(self.new.label, minlength=len(self.class_names))
        new, old = (_counts(each, len(self.class_names)) for each in (self.new, self.old))
        observed = _measure(count, new, measure) - _measure(count, old, measure)
        drawn_new, drawn_old = _resamples(self.new, self.old, len(self.class_names))
        differences = _measure(count, drawn_new, measure) - _measure(count, drawn_old, measure)
        bound = float(np.quantile(differences, 1 - CONFIDENCE, method="lower"))
        return Resampled(measure=measure, difference=float(observed), bound=bound, count=len(self.new))

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


_Counts = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Images put into each class, and those of them that belong there, [..., K] each."""


def _counts(predictions: Predictions, classes: int) -> _Counts:
    right = predictions.predicted[predictions.correct]
    return np.bincount(predictions.predicted, minlength=classes), np.bincount(right, minlength=classes)


def _measure(count: npt.NDArray[np.int64], counts: _Counts, measure: OverClasses) -> npt.NDArray[np.float64]:
    import torch

    from resnet_core.evaluation.class_scores import ClassScores

    predicted, correct = (torch.from_numpy(each) for each in counts)
    scores = ClassScores(count=torch.from_numpy(count).expand_as(correct), predicted=predicted, correct=correct)
    return scores.means()[measure].numpy()


def _resamples(new: Predictions, old: Predictions, classes: int) -> tuple[_Counts, _Counts]:
    """Return the counts of both models in each resample, [R, K]. A wrong answer that was added is in no class."""
    rng = np.random.default_rng(_SEED)
    zeros = np.zeros((2, 2, _RESAMPLES, classes + 1), dtype=np.int64)  # by model, predicted or correct
    for label in np.unique(new.label).tolist():
        rows = new.label == label
        added = np.array([[label, label], [label, classes], [classes, label], [classes, classes]])
        answers = np.concatenate([np.stack([new.predicted[rows], old.predicted[rows]], axis=1), added])
        weights = np.concatenate([np.ones(int(rows.sum())), np.full(len(added), _ADDED)])
        cells, place = np.unique(answers, axis=0, return_inverse=True)
        chances = np.bincount(place.ravel(), weights)
        drawn = rng.multinomial(int(rows.sum()), chances / chances.sum(), size=_RESAMPLES)
        for model in (0, 1):
            np.add.at(zeros[model, 0].T, cells[:, model], drawn.T)
            zeros[model, 1, :, label] = drawn[:, cells[:, model] == label].sum(axis=1)
    first, second = zeros[..., :classes]
    return (first[0], first[1]), (second[0], second[1])


def _paired(new: npt.NDArray[np.bool_], old: npt.NDArray[np.bool_]) -> Paired:
    return Paired(wins=int((new & ~old).sum()), losses=int((old & ~new).sum()), count=len(new))


def _most_confident(rows: npt.NDArray[np.bool_], predictions: Predictions) -> npt.NDArray[np.int64]:
    (chosen,) = np.nonzero(rows)
    return chosen[np.argsort(-predictions.probability[chosen], kind="stable")]
