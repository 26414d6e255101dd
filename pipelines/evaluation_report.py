"""What `evaluate.py` says of one model: in the terminal, as JSON, and in figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from infra.proportions import Interval
from pipelines.evaluated import Evaluated, pictures
from pipelines.scoring import EvalData
from pipelines.targets import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN_CLASSES = 20  # of more, those with the lowest accuracy; --json has all
_SHOWN_PAIRS = 10
_SHEET = 24  # pictures


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """One model on a whole split."""

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
            "target": target.description,
            "data_digest": score.data_digest,
            "split": target.data.split,
            "views": target.data.views.name,
            **target.data.crop.shown,
            "scales": target.data.scales,
            "count": score.count,
            "loss": score.loss,
            "loss_interval": bounds(evaluated.loss),
            "accuracy": score.accuracy,
            "accuracy_interval": bounds(evaluated.accuracy),
            "top5_accuracy": score.top5_accuracy,
            "top5_accuracy_interval": bounds(evaluated.top5_accuracy),
            "calibration_error": score.calibration_error,
            "calibration_error_interval": bounds(evaluated.calibration_error),
            "class_counts": dict(zip(names, score.class_counts, strict=True)),
            "class_accuracy": dict(zip(names, score.class_accuracy, strict=True)),
            "class_accuracy_interval": dict(zip(names, map(bounds, evaluated.class_accuracy), strict=True)),
            "confused": [
                {"label": names[label], "predicted": names[predicted], "images": count}
                for label, predicted, count in self._confused
            ],
        }

    @property
    def predictions(self) -> bytes:
        """The answer to every image, as Parquet."""
        return self.evaluated.predictions.to_parquet()

    def figures(self) -> Mapping[str, Figure]:
        """By name: confusion, reliability, mistakes."""
        from infra import evaluation_plots, plots
        from resnet_core.evaluation.exact import CALIBRATION_BINS

        predictions, names = self.evaluated.predictions, self.target.class_names
        worst = self.evaluated.mistakes.rows(slice(_SHEET))
        shown = pictures(self.target.data, worst.id.tolist())
        columns = zip(worst.id.tolist(), worst.label, worst.predicted, worst.probability, strict=True)
        sheet = [
            plots.Mistake(image=shown[place], label=names[label], predicted=names[predicted], probability=float(sure))
            for place, label, predicted, sure in columns
        ]
        return {
            "confusion": plots.confusion_of_pairs(predictions.pairs(), names),
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
            "calibration": f"{score.calibration_error:.2%} expected error  (95 %: {evaluated.calibration_error})",
        }

    @cached_property
    def _confused(self) -> list[tuple[int, int, int]]:
        from infra.plots import worst_pairs

        return worst_pairs(self.evaluated.predictions.pairs(), _SHOWN_PAIRS)

    def _class_table(self) -> Table:
        score, intervals = self.evaluated.score, self.evaluated.class_accuracy
        rows = list(zip(self.target.class_names, score.class_counts, score.class_accuracy, intervals, strict=True))
        title = "class"
        if len(rows) > _SHOWN_CLASSES:
            title = f"lowest {_SHOWN_CLASSES} of {len(rows):,} classes"
            rows = sorted((row for row in rows if row[1]), key=lambda row: row[2] or 0.0)[:_SHOWN_CLASSES]
        found = table(title, "images", "top-1", "95 %")
        for name, count, accuracy, interval in rows:
            found.add_row(name, f"{count:,}", "-" if accuracy is None else f"{accuracy:.2%}", str(interval or "-"))
        return found

    def _confused_table(self) -> Table:
        found = table("most confused", "images", "of the class")
        names, counts = self.target.class_names, self.evaluated.score.class_counts
        for label, predicted, count in self._confused:
            found.add_row(f"{names[label]} → {names[predicted]}", f"{count:,}", f"{count / counts[label]:.2%}")
        return found


def shown_data(data: EvalData, count: int) -> Mapping[str, str]:
    """What a model was shown."""
    return {
        "data set": f"{data.manifest.name}, split {data.split}",
        "images": f"{count:,}",
        "views": _described(data),
        "pixels": f"{data.crop.interpolation}, {data.crop.decoder}",
    }


def lines(rows: Mapping[str, str]) -> str:
    """One line each, however long: a table would break them at the width of the terminal."""
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def table(title: str, *columns: str) -> Table:
    """A plain one: names to the left, figures to the right."""
    made = Table(title, *columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column in made.columns[1:]:
        column.justify = "right"
    return made


def bounds(interval: Interval | None) -> list[float] | None:
    """For JSON."""
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
