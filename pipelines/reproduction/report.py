"""Results of a suite, made from the measurements of its runs: the table, its JSON, the figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, TypeVar

from pipelines.reproduction.measurements import Curve, Measurements
from pipelines.reproduction.spec import Entry, FigureSpec, Measure, Suite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from infra.plots.paper import ErrorCurves, LayerValues, Line

T = TypeVar("T")
Runs = Mapping[str, Sequence[Measurements]]
"""Name of an entry -> measurements of its runs."""
_NOTHING = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One measure of one entry, in percent."""

    values: tuple[float, ...]  # by seed
    published: float | None

    @property
    def mean(self) -> float | None:
        return fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Return the sample standard deviation over seeds; None for fewer than two."""
        return _spread(self.values)

    @property
    def difference(self) -> float | None:
        """Return our mean minus the published figure, in percentage points."""
        return None if self.mean is None or self.published is None else self.mean - self.published


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultRow:
    """Row of the table: one entry."""

    entry: str
    runs: tuple[Measurements, ...]
    planned: int  # runs that the suite plans for it; an ensemble counts as one
    cells: dict[Measure, Cell]


def rows_of(suite: Suite, measured: Sequence[Measurements]) -> list[ResultRow]:
    """Return a row for every entry of the suite; an entry without a run has empty cells."""
    return [_row(suite, entry, [each for each in measured if each.entry == entry.name]) for entry in suite.entry]


def to_markdown(suite: Suite, measured: Sequence[Measurements]) -> str:
    """Return the title, the table and its caption."""
    header, *lines = _lines(suite, rows_of(suite, measured))
    rule = ["---", *["---:"] * (len(header) - 1)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))
    return f"# {suite.title}\n\n{body}\n\n{_CAPTION}\n"


def to_text(suite: Suite, measured: Sequence[Measurements]) -> str:
    """Return the table for a terminal, with aligned columns."""
    lines = _lines(suite, rows_of(suite, measured))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pairs = [zip(line, widths, strict=True) for line in lines]
    return "\n".join(
        "  ".join(text.rjust(width) if place else text.ljust(width) for place, (text, width) in enumerate(line))
        for line in pairs
    )


def to_json(suite: Suite, measured: Sequence[Measurements]) -> str:
    """Return the suite, the numbers of the table, and the measurements of every run."""
    rows = [
        {
            "entry": row.entry,
            "runs": len(row.runs),
            "measures": {name: _figures(cell) for name, cell in row.cells.items()},
        }
        for row in rows_of(suite, measured)
    ]
    runs = [asdict(each) for each in measured]
    return (
        json.dumps({"suite": suite.model_dump(mode="json"), "table": rows, "runs": runs}, indent=1, sort_keys=True)
        + "\n"
    )


def figures(suite: Suite, measured: Sequence[Measurements]) -> dict[str, Figure]:
    """Return the figures by name; a figure without any data yet is left out."""
    from infra.plots import paper as paper_plots

    drawn: dict[str, Figure] = {}
    for curves in suite.curves:
        lines = {title: list(_each(runs, _error_curves).values()) for title, runs in _panels(curves, measured)}
        if lines:
            drawn[curves.name] = paper_plots.error_curves(lines, most=curves.most)
    for responses in suite.responses:
        layers = {title: _each(runs, _mean_responses) for title, runs in _panels(responses, measured)}
        if layers:
            drawn[responses.name] = paper_plots.response_deviations(layers)
    return drawn


_CAPTION = (
    "Errors in percent, of each run's last checkpoint: mean ± standard deviation over seeds. Training error: the "
    "training split, scored after training exactly as the test split is. Multiply-adds: one image, forward pass."
)
_LABELS: dict[Measure, str] = {
    "train_error": "training error",
    "test_error": "test error",
    "test_top5_error": "test top-5 error",
    "ten_crop_error": "10-crop error",
    "ten_crop_top5_error": "10-crop top-5 error",
    "multi_scale_error": "multi-scale error",
    "multi_scale_top5_error": "multi-scale top-5 error",
}


def _row(suite: Suite, entry: Entry, runs: Sequence[Measurements]) -> ResultRow:
    cells = {
        measure: Cell(values=tuple(run.errors[measure] for run in runs), published=entry.published.get(measure))
        for measure in suite.measures
    }
    planned = 1 if entry.members else len(suite.seeds_of(entry))
    return ResultRow(entry=entry.name, runs=tuple(runs), planned=planned, cells=cells)


def _lines(suite: Suite, rows: Sequence[ResultRow]) -> list[list[str]]:
    """Return header and rows as text; a measure without a published figure has one column."""
    compared = {measure for row in rows for measure, cell in row.cells.items() if cell.published is not None}
    header = ["", "runs", "multiply-adds", "images", "images/s"]
    for measure in suite.measures:
        header += [_LABELS[measure], *(["published", "difference"] if measure in compared else [])]
    return [header, *(_line(row, compared) for row in rows)]


def _line(row: ResultRow, compared: set[Measure]) -> list[str]:
    trained = [run for run in row.runs if run.images]
    texts = [row.entry, f"{len(row.runs)}/{row.planned}"]
    texts += [f"{trained[0].multiply_adds / 1e6:,.1f}M", f"{trained[0].images:,}"] if trained else [_NOTHING] * 2
    texts += [f"{fmean(run.images_per_second for run in trained):,.0f}"] if trained else [_NOTHING]
    for measure, cell in row.cells.items():
        texts.append(_ours(cell))
        if measure in compared:
            texts += [_number(cell.published, ".2f"), _number(cell.difference, "+.2f")]
    return texts


def _ours(cell: Cell) -> str:
    return _number(cell.mean, ".2f") + (f" ± {cell.spread:.2f}" if cell.spread is not None else "")


def _number(value: float | None, form: str) -> str:
    return _NOTHING if value is None else format(value, form)


def _figures(cell: Cell) -> dict[str, float | list[float] | None]:
    return {
        "mean": cell.mean,
        "spread": cell.spread,
        "values": list(cell.values),
        "published": cell.published,
        "difference": cell.difference,
    }


def _spread(values: Sequence[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def _panels(figure: FigureSpec, measured: Sequence[Measurements]) -> Iterator[tuple[str, Runs]]:
    """Yield the title and the runs by entry of each panel that has data."""
    for title, entries in figure.panels.items():
        of_entry = {name: [each for each in measured if each.entry == name] for name in entries}
        with_runs = {name: runs for name, runs in of_entry.items() if runs}
        if with_runs:
            yield title, with_runs


def _each(runs: Runs, draw: Callable[[str, Sequence[Measurements]], T]) -> dict[str, T]:
    return {name: draw(name, of_entry) for name, of_entry in runs.items()}


def _error_curves(name: str, runs: Sequence[Measurements]) -> ErrorCurves:
    from infra.plots.paper import ErrorCurves

    train, test = _mean_line([run.train_curve for run in runs]), _mean_line([run.test_curve for run in runs])
    return ErrorCurves(name=name, train=train, test=test, held_out=runs[0].curve_split)


def _mean_line(curves: Sequence[Curve]) -> Line:
    """Return the mean over seeds, at the steps that all seeds have."""
    from infra.plots.paper import Line

    by_step = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(curve) for curve in by_step)))
    errors = [[curve[step] for curve in by_step] for step in steps]
    spread = [stdev(values) for values in errors] if len(curves) > 1 else []
    return Line(x=steps, error=[fmean(values) for values in errors], spread=spread)


def _mean_responses(_: str, runs: Sequence[Measurements]) -> LayerValues:
    layers = zip(*(run.responses for run in runs), strict=True)
    return [(seeds[0][0], fmean(value for _, value in seeds)) for seeds in layers]
