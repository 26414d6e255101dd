"""Report of `evaluate.py` on one model: in the terminal, as JSON and as plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.table import Table

from infra.proportions import Interval
from infra.registry.gate import Score
from pipelines.evaluation.models import Target
from pipelines.evaluation.result import Evaluated, pictures
from pipelines.evaluation.scoring import EvalData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN_CLASSES = 20  # if there are more: those with the lowest accuracy; --json has all
_SHOWN_PAIRS = 10
_SHEET = 24  # images
_OVER_CLASSES = ("balanced_accuracy", "macro_precision", "macro_recall", "macro_f1")


class Report(Protocol):
    """The report of `evaluate.py` on one model, or on two."""

    @property
    def predictions(self) -> bytes:
        """The prediction for every image, as Parquet."""

    def show(self, console: Console) -> None:
        """Print the metrics and a table of classes."""

    def as_json(self) -> dict[str, Any]:
        """Return the metrics as JSON values."""

    def figures(self) -> Mapping[str, Figure]:
        """Return the plots by name."""


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The report on one model and a whole split."""

    target: Target
    evaluated: Evaluated

    def show(self, console: Console) -> None:
        console.print(lines(self._summary))
        console.print()
        console.print(self._class_table())
        if self._confused:
            console.print()
            console.print(self._confused_table())

    def as_json(self) -> dict[str, Any]:
        target, score, evaluated = self.target, self.evaluated.score, self.evaluated
        names = target.class_names
        return {
            **identity(target, score),
            "loss": score.loss,
            "loss_interval": bounds(evaluated.loss),
            "accuracy": score.accuracy,
            "accuracy_interval": bounds(evaluated.accuracy),
            "top5_accuracy": score.top5_accuracy,
            "top5_accuracy_interval": bounds(evaluated.top5_accuracy),
            "calibration_error": score.calibration_error,
            "calibration_error_interval": bounds(evaluated.calibration_error),
            **{name: getattr(score, name) for name in _OVER_CLASSES},
            "class_counts": dict(zip(names, score.class_counts, strict=True)),
            "class_accuracy": dict(zip(names, score.class_accuracy, strict=True)),
            "class_accuracy_interval": dict(zip(names, map(bounds, evaluated.class_accuracy), strict=True)),
            "class_precision": dict(zip(names, score.class_precision, strict=True)),
            "class_f1": dict(zip(names, score.class_f1, strict=True)),
            "confused": [
                {"label": names[label], "predicted": names[predicted], "images": count}
                for label, predicted, count in self._confused
            ],
        }

    @property
    def predictions(self) -> bytes:
        """The prediction for every image, as Parquet."""
        return self.evaluated.predictions.to_parquet()

    def figures(self) -> Mapping[str, Figure]:
        """Return the plots by name: confusion, classes, reliability, mistakes."""
        from infra.plots import evaluation as evaluation_plots
        from infra.plots import training as plots
        from resnet_core.evaluation.exact import CALIBRATION_BINS

        predictions, names, score = self.evaluated.predictions, self.target.class_names, self.evaluated.score
        worst = self.evaluated.mistakes.rows(slice(_SHEET))
        shown = pictures(self.target.data, worst.id.tolist())
        columns = zip(worst.id.tolist(), worst.label, worst.predicted, worst.probability, strict=True)
        sheet = [
            plots.Mistake(
                image=shown[sample], label=names[label], predicted=names[predicted], probability=float(confidence)
            )
            for sample, label, predicted, confidence in columns
        ]
        return {
            "confusion": plots.confusion_of_pairs(predictions.pairs(), names),
            "classes": evaluation_plots.class_scores(
                names, score.class_precision, [rate or 0.0 for rate in score.class_accuracy], score.class_f1
            ),
            "reliability": evaluation_plots.reliability(
                predictions.probability, predictions.correct, bins=CALIBRATION_BINS
            ),
            "mistakes": plots.mistakes(sheet),
        }

    @property
    def _summary(self) -> Mapping[str, str]:
        data, score, evaluated = self.target.data, self.evaluated.score, self.evaluated
        loss = evaluated.loss
        return {
            "model": self.target.description,
            **shown_data(data, score.count),
            "loss": f"{score.loss:.4f}  (95 %: {loss.low:.4f} to {loss.high:.4f})",
            "top-1": f"{score.accuracy:.2%}  (95 %: {evaluated.accuracy})",
            "top-5": f"{score.top5_accuracy:.2%}  (95 %: {evaluated.top5_accuracy})",
            "balanced": f"{score.balanced_accuracy:.2%} mean accuracy of the classes",
            "macro F1": (
                f"{score.macro_f1:.2%}  (precision {score.macro_precision:.2%}, recall {score.macro_recall:.2%})"
            ),
            "calibration": f"{score.calibration_error:.2%} expected error  (95 %: {evaluated.calibration_error})",
        }

    @cached_property
    def _confused(self) -> list[tuple[int, int, int]]:
        from infra.plots.training import worst_pairs

        return worst_pairs(self.evaluated.predictions.pairs(), _SHOWN_PAIRS)

    def _class_table(self) -> Table:
        score, intervals = self.evaluated.score, self.evaluated.class_accuracy
        names, rates = self.target.class_names, (score.class_precision, score.class_f1)
        rows = list(zip(names, score.class_counts, score.class_accuracy, intervals, *rates, strict=True))
        title = "class"
        if len(rows) > _SHOWN_CLASSES:
            title = f"lowest {_SHOWN_CLASSES} of {len(rows):,} classes"
            rows = sorted((row for row in rows if row[1]), key=lambda row: row[2] or 0.0)[:_SHOWN_CLASSES]
        found = table(title, "images", "top-1", "95 %", "precision", "F1")
        for name, count, accuracy, interval, precision, f1 in rows:
            shown = "-" if accuracy is None else f"{accuracy:.2%}"
            found.add_row(name, f"{count:,}", shown, str(interval or "-"), f"{precision:.2%}", f"{f1:.2%}")
        return found

    def _confused_table(self) -> Table:
        found = table("most confused", "images", "of the class")
        names, counts = self.target.class_names, self.evaluated.score.class_counts
        for label, predicted, count in self._confused:
            found.add_row(f"{names[label]} → {names[predicted]}", f"{count:,}", f"{count / counts[label]:.2%}")
        return found


def shown_data(data: EvalData, count: int) -> Mapping[str, str]:
    """Return the rows that describe a model's input: data set, images, crops, pixels."""
    return {
        "data set": f"{data.manifest.name}, split {data.split}",
        "images": f"{count:,}",
        "views": _described(data),
        "pixels": f"{data.crop.interpolation}, {data.crop.decoder}",
    }


def shown_data_of_two(old: EvalData, new: EvalData, count: int) -> Mapping[str, str]:
    """Return the rows of `shown_data` for two models; what differs has the values of both."""
    shown, other = dict(shown_data(old, count)), shown_data(new, count)
    for name in ("views", "pixels"):
        if shown[name] != other[name]:
            shown[name] = f"A: {shown[name]}; B: {other[name]}"
    return shown


def identity(target: Target, score: Score) -> dict[str, Any]:
    """Return as JSON values which model was scored on what."""
    return {
        "target": target.description,
        "data_digest": score.data_digest,
        "split": target.data.split,
        "views": target.data.views.name,
        **target.data.crop.shown,
        "scales": target.data.scales,
        "count": score.count,
    }


def lines(rows: Mapping[str, str]) -> str:
    """Return one line per row, however long: a table would break lines at the width of the terminal."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def table(title: str, *columns: str) -> Table:
    """Return a plain table: names on the left, numbers on the right."""
    made = Table(title, *columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column in made.columns[1:]:
        column.justify, column.no_wrap = "right", True
    return made


def bounds(interval: Interval | None) -> list[float] | None:
    """Return an interval as a JSON value."""
    return [interval.low, interval.high] if interval else None


def _described(data: EvalData) -> str:
    size, resize = data.crop.image_size, data.crop.eval_resize
    crop = f"{size}x{size} of a shorter side of {resize}"
    scales = ", ".join(map(str, data.scales))
    whole = f"whole images with a shorter side of {scales}, at every position of a {size}x{size} crop"
    return {
        "centre": f"centre crop, {crop}",
        "flip": f"centre crop and its mirror image, {crop}",
        "ten_crop": f"10-crop, {crop}",
        "multi_scale": whole,
        "multi_scale_flip": f"{whole}, and their mirror images",
    }[data.views.name]
