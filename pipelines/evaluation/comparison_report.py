"""Report of `evaluate.py A B` on two models and the same images: in the terminal, as JSON and as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from infra.registry.gate import points
from pipelines.evaluation.comparison import ClassChange, Comparison
from pipelines.evaluation.report import EvaluationReport, bounds, lines, shown_data_of_two, table
from pipelines.evaluation.result import Evaluated, pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from infra.plots.evaluation import Flip

_SHOWN_CLASSES = 20  # if there are more: those with the lowest adjusted p; --json has all
_SHEET = 18  # images in each direction
_SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """The second model, B, compared with the first, A."""

    old: EvaluationReport
    new: EvaluationReport

    @cached_property
    def comparison(self) -> Comparison:
        return Comparison(
            new=self.new.evaluated.predictions,
            old=self.old.evaluated.predictions,
            class_names=self.new.target.class_names,
        )

    def show(self, console: Console) -> None:
        console.print(lines(self._summary))
        console.print()
        console.print(self._class_table())

    def as_json(self) -> dict[str, Any]:
        paired = self.comparison.paired
        return {
            "old": self.old.as_json(),
            "new": self.new.as_json(),
            "count": paired.count,
            "difference": paired.difference,
            "difference_interval": bounds(paired.interval()),
            "p_value": paired.p_value,
            "wins": paired.wins,
            "losses": paired.losses,
            "agreement": self.comparison.agreement,
            "classes": {
                change.name: {
                    "count": change.paired.count,
                    "wins": change.paired.wins,
                    "losses": change.paired.losses,
                    "p_value": change.paired.p_value,
                    "adjusted_p_value": change.adjusted_p,
                }
                for change in self._changes
            },
        }

    @property
    def predictions(self) -> bytes:
        """Predictions of both models for every image, as Parquet."""
        return self.comparison.to_parquet()

    def figures(self) -> Mapping[str, Figure]:
        """Return the plots by name: classes, flips."""
        from infra.plots import evaluation as evaluation_plots

        changes = self._changes
        return {
            "classes": evaluation_plots.class_changes(
                [change.name for change in changes],
                [change.paired.difference for change in changes],
                [change.significant for change in changes],
            ),
            "flips": evaluation_plots.flips(self._sheet()),
        }

    @cached_property
    def _changes(self) -> list[ClassChange]:
        return self.comparison.class_changes()

    @property
    def _summary(self) -> Mapping[str, str]:
        paired = self.comparison.paired
        low, high = 100 * paired.interval().low, 100 * paired.interval().high
        return {
            "A": self.old.target.description,
            "B": self.new.target.description,
            **shown_data_of_two(self.old.target.data, self.new.target.data, paired.count),
            "top-1 of A": _accuracy(self.old.evaluated),
            "top-1 of B": _accuracy(self.new.evaluated),
            "difference": f"{points(paired.difference)}  (95 %: {low:+.2f} to {high:+.2f}; "
            f"McNemar's exact p = {paired.p_value:.2g})",
            "flips": f"only B is right on {paired.wins:,}, only A on {paired.losses:,}; "
            f"both predict the same class on {self.comparison.agreement:.2%}",
            "verdict": _verdict(paired.difference, paired.p_value),
        }

    def _class_table(self) -> Table:
        changes: Sequence[ClassChange] = self._changes
        title = "class"
        if len(changes) > _SHOWN_CLASSES:
            title = f"{_SHOWN_CLASSES} of {len(changes):,} classes, lowest adjusted p first"
            changes = sorted(changes, key=lambda change: (change.adjusted_p, -abs(change.paired.difference)))
        found = table(title, "images", "change", "only B", "only A", "adjusted p", "")
        for change in changes[:_SHOWN_CLASSES]:
            paired = change.paired
            effect = ("better" if paired.difference > 0 else "worse") if change.significant else ""
            figures = (f"{paired.count:,}", points(paired.difference), f"{paired.wins:,}", f"{paired.losses:,}")
            found.add_row(change.name, *figures, f"{change.adjusted_p:.2g}", effect)
        return found

    def _sheet(self) -> list[Flip]:
        """Return the images of the sheet: losses, then wins, the most confident first in each group."""
        from infra.plots.evaluation import Flip

        comparison, names = self.comparison, self.new.target.class_names
        losses, wins = comparison.losses[:_SHEET].tolist(), comparison.wins[:_SHEET].tolist()
        shown = pictures(self.new.target.data, comparison.new.id[[*losses, *wins]].tolist())
        return [
            Flip(
                image=shown[int(comparison.new.id[row])],
                label=names[comparison.new.label[row]],
                wrong=names[wrong.predicted[row]],
                gained=gained,
            )
            for rows, wrong, gained in ((losses, comparison.new, False), (wins, comparison.old, True))
            for row in rows
        ]


def _accuracy(evaluated: Evaluated) -> str:
    return f"{evaluated.score.accuracy:.2%}  (95 %: {evaluated.accuracy})"


def _verdict(difference: float, p_value: float) -> str:
    if p_value > _SIGNIFICANT:
        return "these images do not show which model is better"
    return f"{'B' if difference > 0 else 'A'} is better"
