"""Report of `evaluate.py` on multi-label models, one or two: average precision of each class with its interval.

Shapes: K classes, R resamples of the images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from infra.proportions import CONFIDENCE, Interval
from infra.registry.gate import points
from pipelines.evaluation.label_predictions import (
    EvaluatedLabels,
    bootstrap,
    labels_to_parquet,
    mean_over_classes,
)
from pipelines.evaluation.models import Target
from pipelines.evaluation.predictions import check_same_images
from pipelines.evaluation.report import bounds, identity, lines, shown_data, shown_data_of_two, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN_CLASSES = 20  # if there are more: those with the lowest average precision, or the largest change; --json has all
_MACRO = ("macro_precision", "macro_recall", "macro_f1")


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """The report on one multi-label model and a whole split."""

    target: Target
    evaluated: EvaluatedLabels

    def show(self, console: Console) -> None:
        console.print(lines(self._summary))
        console.print()
        console.print(self._class_table())

    def as_json(self) -> dict[str, Any]:
        target, score = self.target, self.evaluated.score
        macro = {} if self._rates is None else dict(zip(_MACRO, self._rates.mean(axis=1).tolist(), strict=True))
        return {
            **identity(target, score),
            "loss": score.loss,
            "accuracy": score.accuracy,
            "mean_average_precision": self.mean,
            "mean_average_precision_interval": bounds(self.mean_interval),
            **macro,
            "classes": dict(zip(target.class_names, map(self._class_as_json, range(self._classes)), strict=True)),
        }

    @property
    def predictions(self) -> bytes:
        """The probability of each class for every image, as Parquet."""
        return self.evaluated.predictions.to_parquet()

    def figures(self) -> Mapping[str, Figure]:
        """Return the plots by name: average_precision."""
        from infra.plots.evaluation import average_precisions

        return {"average_precision": average_precisions(self.target.class_names, self.precisions.tolist())}

    @property
    def precisions(self) -> npt.NDArray[np.float64]:
        """Average precision of each class, [K]; NaN for a class without images."""
        return np.asarray(self.evaluated.rates.average_precision, dtype=np.float64)

    @property
    def mean(self) -> float:
        """Mean average precision."""
        return self.evaluated.score.mean_average_precision or 0.0

    @cached_property
    def mean_interval(self) -> Interval:
        return interval(self.mean, mean_over_classes(self.resamples))

    @cached_property
    def resamples(self) -> npt.NDArray[np.float64]:
        """Average precisions of resampled images, [K, R]."""
        return bootstrap(self.evaluated.predictions)

    @cached_property
    def _rates(self) -> npt.NDArray[np.float64] | None:
        """Precision, recall and F1 at the model's thresholds, [3, K]; None if it has none."""
        thresholds = self.target.thresholds
        return self.evaluated.predictions.rates_at(thresholds) if thresholds else None

    @property
    def _classes(self) -> int:
        return len(self.target.class_names)

    @property
    def _summary(self) -> Mapping[str, str]:
        score = self.evaluated.score
        if self._rates is None:
            macro = "the model has no thresholds"
        else:
            precision, recall, f1 = self._rates.mean(axis=1)
            macro = f"{f1:.2%} at the model's thresholds  (precision {precision:.2%}, recall {recall:.2%})"
        return {
            "model": self.target.description,
            **shown_data(self.target.data, score.count),
            "loss": f"{score.loss:.4f}",
            "mean AP": f"{self.mean:.2%}  (95 %: {self.mean_interval})",
            "macro F1": macro,
        }

    def _class_table(self) -> Table:
        order: Sequence[int] = range(self._classes)
        title = "class"
        if self._classes > _SHOWN_CLASSES:
            title = f"lowest {_SHOWN_CLASSES} of {self._classes:,} classes"
            order = np.argsort(self.precisions, kind="stable")[:_SHOWN_CLASSES].tolist()
        found = table(title, "images", "AP", "95 %", "threshold", "precision", "recall", "F1")
        for place in order:
            shown = self._class_as_json(place)
            precision = shown["average_precision"]
            at_threshold = ["-"] * 4
            if self._rates is not None:
                at_threshold = [f"{shown['threshold']:.3f}", *(f"{rate:.1%}" for rate in self._rates[:, place])]
            found.add_row(
                self.target.class_names[place],
                f"{shown['count']:,}",
                "-" if precision is None else f"{precision:.1%}",
                "-" if precision is None else _percent(interval(precision, self.resamples[place])),
                *at_threshold,
            )
        return found

    def _class_as_json(self, place: int) -> dict[str, Any]:
        precision, count = float(self.precisions[place]), int(self.evaluated.rates.count[place])
        absent = math.isnan(precision)
        found: dict[str, Any] = {
            "count": count,
            "average_precision": None if absent else precision,
            "average_precision_interval": None if absent else bounds(interval(precision, self.resamples[place])),
        }
        if self._rates is not None:
            rates = zip(("precision", "recall", "f1"), self._rates[:, place].tolist(), strict=True)
            found |= {"threshold": self.target.thresholds[place], **dict(rates)}
        return found


@dataclass(frozen=True, kw_only=True)
class LabelComparisonReport:
    """The second multi-label model, B, compared with the first, A."""

    old: LabelReport
    new: LabelReport

    def __post_init__(self) -> None:
        check_same_images(self.new.evaluated.predictions, self.old.evaluated.predictions)

    def show(self, console: Console) -> None:
        console.print(lines(self._summary))
        console.print()
        console.print(self._class_table())

    def as_json(self) -> dict[str, Any]:
        columns = zip(self._changes.tolist(), self._intervals, strict=True)
        return {
            "old": self.old.as_json(),
            "new": self.new.as_json(),
            "count": self.new.evaluated.score.count,
            "difference": self._difference,
            "difference_interval": bounds(self._interval),
            "classes": {
                name: {
                    "difference": None if math.isnan(change) else change,
                    "difference_interval": None if math.isnan(change) else bounds(found),
                }
                for name, (change, found) in zip(self.new.target.class_names, columns, strict=True)
            },
        }

    @property
    def predictions(self) -> bytes:
        """The probabilities of both models for every image, as Parquet."""
        new, old = self.new.evaluated.predictions, self.old.evaluated.predictions
        probabilities = {"old_probability": old.probability, "new_probability": new.probability}
        return labels_to_parquet(new.id, {"label": new.label, **probabilities})

    def figures(self) -> Mapping[str, Figure]:
        """Return the plots by name: classes."""
        from infra.plots.evaluation import class_changes

        sure = [found.low > 0 or found.high < 0 for found in self._intervals]
        changes = np.nan_to_num(self._changes).tolist()
        return {"classes": class_changes(self.new.target.class_names, changes, sure, "average precision")}

    @property
    def _difference(self) -> float:
        return self.new.mean - self.old.mean

    @cached_property
    def _interval(self) -> Interval:
        return interval(
            self._difference, mean_over_classes(self.new.resamples) - mean_over_classes(self.old.resamples), least=-1.0
        )

    @cached_property
    def _changes(self) -> npt.NDArray[np.float64]:
        return self.new.precisions - self.old.precisions

    @cached_property
    def _intervals(self) -> list[Interval]:
        rows = zip(self._changes.tolist(), self.new.resamples - self.old.resamples, strict=True)
        return [interval(change, row, least=-1.0) for change, row in rows]

    @property
    def _summary(self) -> Mapping[str, str]:
        low, high = 100 * self._interval.low, 100 * self._interval.high
        data, count = (self.old.target.data, self.new.target.data), self.new.evaluated.score.count
        verdict = "these images do not show which model is better"
        if low > 0 or high < 0:
            verdict = f"{'B' if low > 0 else 'A'} is better"
        return {
            "A": self.old.target.description,
            "B": self.new.target.description,
            **shown_data_of_two(*data, count),
            "mean AP of A": f"{self.old.mean:.2%}",
            "mean AP of B": f"{self.new.mean:.2%}",
            "difference": f"{points(self._difference)}  (95 %: {low:+.2f} to {high:+.2f}, paired bootstrap)",
            "verdict": verdict,
        }

    def _class_table(self) -> Table:
        names, title = self.new.target.class_names, "class"
        order: Sequence[int] = range(len(names))
        if len(names) > _SHOWN_CLASSES:
            title = f"{_SHOWN_CLASSES} of {len(names):,} classes, largest change first"
            order = np.argsort(-np.abs(np.nan_to_num(self._changes)), kind="stable")[:_SHOWN_CLASSES].tolist()
        found = table(title, "images", "AP of A", "AP of B", "change", "95 %")
        for place in order:
            count = f"{int(self.new.evaluated.rates.count[place]):,}"
            if math.isnan(self._changes[place]):
                found.add_row(names[place], count, *("-",) * 4)
                continue
            low, high = 100 * self._intervals[place].low, 100 * self._intervals[place].high
            rates = (f"{report.precisions[place]:.2%}" for report in (self.old, self.new))
            found.add_row(
                names[place], count, *rates, points(float(self._changes[place])), f"{low:+.2f} to {high:+.2f}"
            )
        return found


def _percent(found: Interval) -> str:
    """Return a short form: eight columns fit into a terminal of 80 characters."""
    return f"{100 * found.low:.1f} to {100 * found.high:.1f}%"


def interval(observed: float, resamples_R: npt.NDArray[np.float64], least: float = 0.0) -> Interval:
    """Return the basic bootstrap interval within `least` and 1; resamples that have no value are left out.

    The basic interval mirrors the distribution of the resamples: on average, the average precision of a resample
    exceeds the sample's, and the sample's the true one.
    """
    found = resamples_R[~np.isnan(resamples_R)]
    if not len(found):
        return Interval(0.0, 0.0)
    outside = (1 - CONFIDENCE) / 2
    low, high = 2 * observed - np.quantile(found, (1 - outside, outside))
    return Interval(max(least, float(low)), min(1.0, float(high)))
