"""Figures of a run: curves, confusions, and misclassified images.

Every function returns matplotlib figures made without pyplot: no global state, no display, nothing to close.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.plots.style import FAINT, INK, frame, new_figure
from infra.tracking.metric_point import MetricPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_COLORS = {"train": "#8da0b8", "validation": "#c8553d", "test": "#c8553d", "other": "#2a6f77"}
_HELD_OUT = ("validation", "test")
_CELLS = "Blues"
_MAX_LABELLED_CLASSES = 30  # with more classes, names on the axes of a matrix are not readable
_MAX_NUMBERED_CLASSES = 15  # with more classes, numbers in its cells are not readable
_BINS = 100  # cells per side of the matrix of many classes
_PAIRS = 20  # the most confused pairs that are named
_MAX_EPOCH_MARKS = 40
_NAME_CHARS = 22
_SHEET_COLUMNS = 6
_CELL_WIDTH, _CELL_HEIGHT, _IMAGE, _GAP = 2.0, 2.35, 1.88, 0.05  # inches
_MIN_SHOWN_PIXELS = 64  # smaller images show their pixels, larger ones are smoothed

Series = dict[str, tuple[list[int], list[float]]]  # metric key -> steps, values


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """An image that was classified wrongly."""

    image: NDArray[np.uint8]  # HxWx3, or HxW
    label: str  # the true class
    predicted: str
    probability: float  # of the predicted class, 0 to 1


def curves(records: Iterable[MetricPoint], *, steps_per_epoch: float | None = None) -> dict[str, Figure]:
    """Return the figures that the records have data for, by name: "loss", "accuracy" (in percent), "learning_rate".

    The horizontal axis is the step. Metrics are found by the last part of their key: ``loss``; ``accuracy``,
    ``top5_accuracy``; ``lr``. ``steps_per_epoch`` marks the ends of epochs.
    """
    series = _series(records)
    figures = {}
    for name, label, parts, scale in (
        ("loss", "loss", ("loss",), 1.0),
        ("accuracy", "accuracy (%)", ("accuracy", "top5_accuracy"), 100.0),
        ("learning_rate", "learning rate", ("lr",), 1.0),
    ):
        chosen = {key: points for key, points in series.items() if key.rpartition("/")[2] in parts}
        if chosen:
            figures[name] = _curve(chosen, label, scale, steps_per_epoch)
    return figures


def confusion(matrix: NDArray[np.integer[Any]], class_names: Sequence[str]) -> Figure:
    """Plot the KxK counts of (true class, predicted class) as a labelled matrix.

    With many classes, plot a coarse matrix and the most confused pairs.
    """
    return confusion_of_pairs(_pairs(matrix), class_names)


def confusion_of_pairs(pairs: NDArray[np.integer[Any]], class_names: Sequence[str]) -> Figure:
    """Plot `confusion` of P x 3 numbers: true class, predicted class, images. Any number of classes fits in memory."""
    classes = len(class_names)
    if classes <= _MAX_LABELLED_CLASSES:
        return _labelled_confusion(_binned(pairs, np.arange(classes)), class_names)
    figure = new_figure(13.5, 7)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    _binned_matrix(figure, left, pairs, classes)
    _confused_pairs(right, pairs, class_names)
    return figure


def mistakes(sheet: Sequence[Mistake]) -> Figure:
    """Show misclassified images in a grid, each titled "true → predicted" with the probability of the prediction."""
    titles = [f"{short(mistake.label)}\n→ {short(mistake.predicted)}  {mistake.probability:.0%}" for mistake in sheet]
    return image_grid([mistake.image for mistake in sheet], titles, [INK] * len(sheet), empty="no mistakes")


def image_grid(
    images: Sequence[NDArray[np.uint8]], titles: Sequence[str], colors: Sequence[str], *, empty: str
) -> Figure:
    """Show images in rows, each under its coloured title; without images, show the text `empty`."""
    columns = max(1, min(_SHEET_COLUMNS, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    wide, high = columns * _CELL_WIDTH, rows * _CELL_HEIGHT
    figure = new_figure(wide, high)
    figure.set_layout_engine("none")
    # One axis for all images, in inches: with an axis for each, most of the time goes into ticks that nobody sees.
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    style: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8, "linespacing": 1.3}
    for place, (image, title, color) in enumerate(zip(images, titles, colors, strict=True)):
        row, column = divmod(place, columns)
        height, width = (_IMAGE * side / max(image.shape[:2]) for side in image.shape[:2])
        middle, bottom = (column + 0.5) * _CELL_WIDTH, _GAP - (row + 1) * _CELL_HEIGHT
        smooth = "nearest" if min(image.shape[:2]) < _MIN_SHOWN_PIXELS else "antialiased"
        extent = (middle - width / 2, middle + width / 2, bottom, bottom + height)
        axis.imshow(image, cmap="gray", interpolation=smooth, extent=extent, aspect="auto")
        axis.text(middle, bottom + height + _GAP, title, color=color, **style)
    axis.set(xlim=(0, wide), ylim=(-high, 0))  # each image has set them
    if not images:
        figure.text(0.5, 0.5, empty, ha="center", va="center", color=INK)
    return figure


def _series(records: Iterable[MetricPoint]) -> Series:
    found: Series = {}
    for record in records:
        for key, value in record.metrics.items():
            steps, values = found.setdefault(key, ([], []))
            steps.append(record.step)
            values.append(value)
    return found


def _curve(series: Series, label: str, scale: float, steps_per_epoch: float | None) -> Figure:
    figure = new_figure(8, 4.5)
    axis = figure.subplots()
    for key, (steps, values) in sorted(series.items()):
        kind = key.partition("/")[0]
        style = _line_style(kind, key, points=len(steps))
        axis.plot(steps, np.asarray(values) * scale, label=key, **style)
    frame(axis, "step", label)
    last = max(steps[-1] for steps, _ in series.values())
    if steps_per_epoch and last / steps_per_epoch <= _MAX_EPOCH_MARKS:
        for end in np.arange(steps_per_epoch, last + 0.5, steps_per_epoch):
            axis.axvline(end, color=FAINT, linewidth=0.8, zorder=0)
        axis.set_xlabel("step (vertical lines: ends of epochs)")
    if len(series) > 1:
        axis.legend(frameon=False, fontsize=9)
    return figure


def _line_style(kind: str, key: str, *, points: int) -> Mapping[str, Any]:
    few = kind in _HELD_OUT and points <= _MAX_EPOCH_MARKS
    return {
        "color": _COLORS.get(kind, _COLORS["other"]),
        "linewidth": 1.8 if kind in _HELD_OUT else 1.2,
        "linestyle": "--" if "top5" in key else "-",
        "marker": "o" if few or points == 1 else None,
        "markersize": 4,
        "zorder": 3 if kind in _HELD_OUT else 2,
    }


def _labelled_confusion(matrix: NDArray[np.integer[Any]], class_names: Sequence[str]) -> Figure:
    classes = len(class_names)
    side = max(4.5, 1.8 + 0.55 * classes if classes <= _MAX_NUMBERED_CLASSES else 2 + 0.36 * classes)
    figure = new_figure(side + 1, side)
    axis = figure.subplots()
    shares = _row_shares(matrix)
    image = axis.imshow(shares, cmap=_CELLS, vmin=0, vmax=1)
    names = [short(name) for name in class_names]
    axis.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axis.set_yticks(range(classes), names, fontsize=9)
    if classes <= _MAX_NUMBERED_CLASSES:
        for (row, column), count in np.ndenumerate(matrix):
            color = "white" if shares[row, column] > 0.5 else INK  # noqa: PLR2004 - the middle of the colour scale
            if count:
                axis.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=color)
    _matrix_frame(figure, axis, image, "share of the true class")
    return figure


def _binned(pairs: NDArray[np.integer[Any]], starts: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Count images by [true, predicted] group of classes; `starts` are the first classes of the groups."""
    counts = np.zeros((len(starts), len(starts)), dtype=np.int64)
    true, predicted = (np.searchsorted(starts, pairs[:, side], side="right") - 1 for side in (0, 1))
    np.add.at(counts, (true, predicted), pairs[:, 2])
    return counts


def _binned_matrix(figure: Figure, axis: Axes, pairs: NDArray[np.integer[Any]], classes: int) -> None:
    from matplotlib.colors import LogNorm

    bins = min(_BINS, classes)
    counts = _binned(pairs, np.linspace(0, classes, bins, endpoint=False).astype(int))
    shares = np.ma.masked_less_equal(_row_shares(counts), 0)
    image = axis.imshow(shares, cmap=_CELLS, norm=LogNorm(vmin=1e-4, vmax=1), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    correct = pairs[pairs[:, 0] == pairs[:, 1], 2].sum() / max(1, pairs[:, 2].sum())
    axis.set_title(f"{classes:,} classes in {bins} groups; {correct:.1%} correct", fontsize=10, color=INK)
    _matrix_frame(figure, axis, image, "share of the true group (log)")


def confused_pairs(matrix: NDArray[np.integer[Any]], most: int) -> list[tuple[int, int, int]]:
    """Return (true class, predicted class, images) of the most confused pairs."""
    return worst_pairs(_pairs(matrix), most)


def worst_pairs(pairs: NDArray[np.integer[Any]], most: int) -> list[tuple[int, int, int]]:
    """Return `confused_pairs` of P x 3 numbers: true class, predicted class, images; equal counts keep their order."""
    wrong = pairs[pairs[:, 0] != pairs[:, 1]]
    order = np.argsort(-wrong[:, 2].astype(np.int64), kind="stable")[:most]
    return [(true, predicted, count) for true, predicted, count in wrong[order].tolist()]


def _pairs(matrix: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Return the non-empty cells of a matrix, row by row: P x 3."""
    cells = np.argwhere(matrix)
    return np.concatenate([cells, matrix[tuple(cells.T)][:, None]], axis=1, dtype=np.int64)


def _confused_pairs(axis: Axes, counted: NDArray[np.integer[Any]], class_names: Sequence[str]) -> None:
    found = worst_pairs(counted, _PAIRS)
    pairs = [(true, predicted) for true, predicted, _ in found]
    counts = [count for _, _, count in found]
    bars = axis.barh(range(len(pairs)), counts, color=_COLORS["test"], height=0.65)
    axis.bar_label(bars, padding=3, fontsize=8, color=INK)
    names = [f"{short(class_names[true])} → {short(class_names[predicted])}" for true, predicted in pairs]
    axis.set_yticks(range(len(pairs)), names, fontsize=8)
    axis.invert_yaxis()
    frame(axis, "", "")
    axis.grid(visible=False)
    axis.set_xticks([])
    axis.set_title("most confused: true → predicted, images", fontsize=10, color=INK)


def _row_shares(counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    return np.asarray(counts / np.maximum(1, counts.sum(axis=1, keepdims=True)))


def _matrix_frame(figure: Figure, axis: Axes, image: Any, bar_label: str) -> None:
    axis.spines[:].set_visible(False)
    axis.tick_params(colors=INK, length=0)
    axis.set_xlabel("predicted", color=INK)
    axis.set_ylabel("true", color=INK)
    bar = figure.colorbar(image, ax=axis, shrink=0.75, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label(bar_label, color=INK, fontsize=9)
    bar.ax.tick_params(labelsize=8, colors=INK, length=0)


def short(name: str) -> str:
    """Return a class name, cut to fit on an axis."""
    return name if len(name) <= _NAME_CHARS else f"{name[: _NAME_CHARS - 1]}…"
