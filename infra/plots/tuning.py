"""Figures of a study: trials as lines over all settings, as points over each setting, as curves over compute."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.plots.style import INK, PALETTE, frame, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = "viridis"
_COLUMNS = 3  # of panels
_LABEL_CHARS = 18
_TICKS = 5
_WHOLE = 0.999  # a larger share means that the trial was trained in full
_WORST_SHOWN = 10  # percentile of the scores where the colours start: one diverged trial must not take the whole range


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One trial."""

    name: str
    values: Mapping[str, Any]  # numbers, or names and lists, which an axis sorts
    score: float  # percent
    share: float  # of the trial that was trained, 0 to 1
    curve: Sequence[tuple[float, float]] = ()  # (share, score)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scale:
    """One setting as an axis from 0 to 1."""

    labels: tuple[str, ...]  # sorted names; empty = a numeric axis
    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Sequence[Any], *, logarithmic: bool) -> _Scale:
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return cls(labels=(), low=min(values), high=max(values), logarithmic=logarithmic and min(values) > 0)
        labels = tuple(sorted({_label(value) for value in values}))
        return cls(labels=labels, low=0, high=max(1, len(labels) - 1), logarithmic=False)

    def place(self, value: Any) -> float:
        number = float(self.labels.index(_label(value))) if self.labels else float(value)
        if self.high == self.low:
            return 0.5
        if self.logarithmic:
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        if self.labels:
            return [(self.place_of(number), label) for number, label in enumerate(self.labels)]
        if self.high == self.low:
            return [(0.5, f"{self.low:.3g}")]
        places = np.linspace(0, 1, _TICKS)
        return [(float(place), f"{self._number(place):.2g}") for place in places]

    def place_of(self, number: int) -> float:
        return number / self.high if len(self.labels) > 1 else 0.5

    def _number(self, place: float) -> float:
        if self.logarithmic:
            return float(self.low * (self.high / self.low) ** place)
        return self.low + place * (self.high - self.low)


def parallel_coordinates(points: Sequence[Point], logarithmic: Collection[str] = ()) -> Figure:
    """Plot an axis per setting and one for the score, and a line per trial; a pale trial was stopped early."""
    keys = list(points[0].values)
    scales = {key: _scale(points, key, logarithmic) for key in keys}
    floor, top = _range(points)
    score = _Scale(labels=(), low=floor, high=top, logarithmic=False)
    figure = new_figure(1.9 * (len(keys) + 1) + 1, 4.8)
    axis = figure.subplots()
    colors = _colors(points)
    for point in sorted(points, key=lambda each: each.score):
        places = [scales[key].place(point.values[key]) for key in keys] + [max(0.0, score.place(point.score))]
        whole = point.share > _WHOLE
        axis.plot(
            range(len(places)),
            places,
            color=colors(point.score),
            linewidth=2.0 if whole else 1.0,
            alpha=1 if whole else 0.45,
        )
    for place, scale in enumerate([*scales.values(), score]):
        axis.axvline(place, color=INK, linewidth=0.8)
        for height, label in scale.ticks():
            axis.text(
                place - 0.03, height, label, ha="right", va="center", fontsize=8, color=INK,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
            )  # fmt: skip
    axis.set_xticks(range(len(keys) + 1), [*keys, "accuracy (%)"], fontsize=9, color=INK)
    axis.set_yticks([])
    axis.set_xlim(-0.45, len(keys) + 0.1)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, pad=8)
    figure.suptitle("bold: trained in full; pale: stopped early", fontsize=9, color=INK)
    return figure


def responses(points: Sequence[Point], logarithmic: Collection[str] = ()) -> Figure:
    """Plot accuracy over each setting; a filled point is a trial that was trained in full."""
    keys = list(points[0].values)
    rows = -(-len(keys) // _COLUMNS)
    columns = min(_COLUMNS, len(keys))
    figure = new_figure(4.0 * columns + 0.4, 3.2 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    floor, top = _range(points)
    for axis in axes[len(keys) :]:
        axis.set_axis_off()
    for place, (axis, key) in enumerate(zip(axes, keys, strict=False)):
        _response(axis, points, _scale(points, key, logarithmic), key)
        frame(axis, key, "accuracy (%)" if place % _COLUMNS == 0 else "")
        margin = max(0.5, 0.06 * (top - floor))
        axis.set_ylim(floor - margin, top + margin)
    figure.suptitle("filled: trained in full; hollow: stopped early", fontsize=9, color=INK)
    return figure


def curves(points: Sequence[Point]) -> Figure:
    """Plot accuracy over the share of a trial's compute; the best trial is named."""
    figure = new_figure(7, 4.4)
    axis = figure.subplots()
    best = max(points, key=lambda point: (point.share, point.score))
    for point in points:
        xs, ys = zip(*point.curve, strict=True) if point.curve else ((), ())
        own: dict[str, Any] = {"color": PALETTE[1], "linewidth": 2.2, "zorder": 3, "label": f"trial {point.name}"}
        other: dict[str, Any] = {"color": PALETTE[0], "linewidth": 1.1, "alpha": 0.6}
        axis.plot(xs, ys, marker="o", markersize=3, **(own if point is best else other))
    frame(axis, "share of a trial's compute", "accuracy (%)")
    axis.set_xlim(0, 1.02)
    axis.set_ylim(bottom=max(0.0, _range(points)[0] - 5))
    axis.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    return figure


def _response(axis: Axes, points: Sequence[Point], scale: _Scale, key: str) -> None:
    for whole in (False, True):
        chosen = [point for point in points if (point.share > _WHOLE) == whole]
        xs, ys = [scale.place(point.values[key]) for point in chosen], [point.score for point in chosen]
        face = PALETTE[1] if whole else "none"
        axis.scatter(xs, ys, s=26, facecolors=face, edgecolors=PALETTE[1] if whole else PALETTE[0], linewidths=1.1)
    places, labels = zip(*scale.ticks(), strict=True)
    axis.set_xticks(places, labels, rotation=30 if scale.labels else 0, ha="right" if scale.labels else "center")
    axis.set_xlim(-0.06, 1.06)


def _scale(points: Sequence[Point], key: str, logarithmic: Collection[str]) -> _Scale:
    return _Scale.of([point.values[key] for point in points], logarithmic=key in logarithmic)


def _range(points: Sequence[Point]) -> tuple[float, float]:
    """Return the range of the scores that figures show; a few bad scores are below the range."""
    scores = [point.score for point in points]
    return float(np.percentile(scores, _WORST_SHOWN)), max(scores)


def _colors(points: Sequence[Point]) -> Any:
    import matplotlib
    from matplotlib.colors import Normalize

    scale, colors = Normalize(*_range(points), clip=True), matplotlib.colormaps[_COLORS]
    return lambda score: colors(scale(score))


def _label(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= _LABEL_CHARS else f"{text[: _LABEL_CHARS - 1]}…"
