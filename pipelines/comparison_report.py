"""What `evaluate.py A B` says of two models on the same images: in the terminal, as JSON, and in figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from infra.gate import points
from pipelines.comparison import ClassChange, Comparison
from pipelines.evaluated import Evaluated, pictures
from pipelines.evaluation_report import EvaluationReport, bounds, lines, shown_data, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from infra.evaluation_plots import Flip

_SHOWN_CLASSES = 20  # of more, those that changed most surely; --json has all
_SHEET = 18  # pictures either way
_SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """B, the second model, against A, the first."""

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
        """Both answers to every image, as Parquet."""
        return self.comparison.to_parquet()

    def figures(self) -> Mapping[str, Figure]:
        """By name: classes, flips."""
        from infra import evaluation_plots

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
        old, new = self.old.target.data, self.new.target.data
        shown = dict(shown_data(old, paired.count))
        other = shown_data(new, paired.count)
        for name in ("views", "pixels"):
            if shown[name] != other[name]:
                shown[name] = f"A: {shown[name]}; B: {other[name]}"
        return {
            "A": self.old.target.description,
            "B": self.new.target.description,
            **shown,
            "top-1 of A": _accuracy(self.old.evaluated),
            "top-1 of B": _accuracy(self.new.evaluated),
            "difference": f"{points(paired.difference)}  (95 %: {low:+.2f} to {high:+.2f}; "
            f"McNemar's exact p = {paired.p_value:.2g})",
            "pictures": f"{paired.wins:,} only B gets right, {paired.losses:,} only A; "
            f"both answer alike on {self.comparison.agreement:.2%}",
            "verdict": _verdict(paired.difference, paired.p_value),
        }

    def _class_table(self) -> Table:
        changes: Sequence[ClassChange] = self._changes
        title = "class"
        if len(changes) > _SHOWN_CLASSES:
            title = f"{_SHOWN_CLASSES} of {len(changes):,} classes, surest change first"
            changes = sorted(changes, key=lambda change: (change.adjusted_p, -abs(change.paired.difference)))
        found = table(title, "images", "change", "only B", "only A", "adjusted p", "")
        for change in changes[:_SHOWN_CLASSES]:
            paired = change.paired
            sure = ("better" if paired.difference > 0 else "worse") if change.significant else ""
            figures = (f"{paired.count:,}", points(paired.difference), f"{paired.wins:,}", f"{paired.losses:,}")
            found.add_row(change.name, *figures, f"{change.adjusted_p:.2g}", sure)
        return found

    def _sheet(self) -> list[Flip]:
        """The surest losses, then the surest wins."""
        from infra.evaluation_plots import Flip

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
        return "these images do not tell which is better"
    return f"{'B' if difference > 0 else 'A'} is better"
