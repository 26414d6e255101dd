"""Figures of the paper (He et al. 2015, arXiv 1512.03385), drawn from plain numbers.

Every function takes panels by their titles and returns a matplotlib figure made without pyplot. Panels share their
axes, so that plain and residual networks are easy to compare. The n-th network of each panel has the same colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.plots.style import FAINT, INK, PALETTE, frame, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LayerValues = Sequence[tuple[str, float]]
"""(layer, value), in the order of the layers."""
_TEST: dict[str, Any] = {"linewidth": 2.2}
_TRAIN: dict[str, Any] = {"linewidth": 1.1, "linestyle": (0, (4, 2))}
_BAND = 0.15  # opacity
_MARKED_POINTS = 40  # with more points, the markers overlap
_MARKED_LAYERS = 60
_NEUTRAL = PALETTE[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """An error over training: of one run, or the mean of several."""

    x: Sequence[float]  # steps or epochs
    error: Sequence[float]  # percent
    spread: Sequence[float] = ()  # percent above and below, such as of several seeds; empty = no band


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorCurves:
    """The curves of one network."""

    name: str
    train: Line | None = None
    test: Line | None = None
    held_out: str = "test"  # the split of `test`


def error_curves(
    panels: Mapping[str, Sequence[ErrorCurves]], *, x_label: str = "step", most: float | None = None
) -> Figure:
    """Plot figures 1, 4 and 6: the training error thin and dashed, the held-out error bold.

    ``most`` is the end of the error axis in percent; None = the largest error.
    """
    figure = new_figure(5 * len(panels) + 0.4, 4.4)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (title, networks) in zip(axes, panels.items(), strict=True):
        for color, network in zip(_colors(len(networks)), networks, strict=True):
            _error_line(axis, network.train, color, _TRAIN)
            _error_line(axis, network.test, color, _TEST)
        frame(axis, x_label, "error (%)" if axis is axes[0] else "")
        axis.set_title(title, fontsize=11, color=INK)
        axis.legend(handles=_legend_lines(networks), frameon=False, fontsize=9, labelcolor=INK, loc="upper right")
    axes[0].set_ylim(0, most)
    axes[0].set_xlim(left=0)
    return figure


def response_deviations(panels: Mapping[str, Mapping[str, LayerValues]]) -> Figure:
    """Plot figure 7: the deviation of each layer's response, by network; in layer order (top), ranked (bottom)."""
    figure = new_figure(5 * len(panels) + 1.5, 6.4)
    axes = figure.subplots(2, len(panels), sharex=True, sharey=True, squeeze=False)
    for (ordered, ranked), (title, networks) in zip(axes.T, panels.items(), strict=True):
        values = _values(networks)
        _layer_lines(ordered, values)
        _layer_lines(ranked, {name: sorted(column, reverse=True) for name, column in values.items()})
        label = "standard deviation of the response" if ordered is axes[0, 0] else ""
        frame(ordered, "layer, in order", label)
        frame(ranked, "layer, largest first", label)
        ordered.tick_params(labelbottom=True)
        ordered.set_title(title, fontsize=11, color=INK)
        ordered.legend(frameon=False, fontsize=9, labelcolor=INK)
    axes[0, 0].set_ylim(bottom=0)
    return figure


def gradient_norms(panels: Mapping[str, Mapping[str, LayerValues]]) -> Figure:
    """Plot the norm of the gradient that reaches each layer, by network, on a logarithmic axis."""
    figure = new_figure(5 * len(panels) + 1.5, 4.2)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    axes[0].set_yscale("log")
    axes[0].tick_params(which="minor", color=FAINT)
    for axis, (title, networks) in zip(axes, panels.items(), strict=True):
        _layer_lines(axis, _values(networks))
        frame(axis, "layer, in order", "norm of the gradient at the response" if axis is axes[0] else "")
        axis.set_title(title, fontsize=11, color=INK)
        axis.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _values(networks: Mapping[str, LayerValues]) -> dict[str, list[float]]:
    return {name: [value for _, value in layers] for name, layers in networks.items()}


def _layer_lines(axis: Axes, networks: Mapping[str, Sequence[float]]) -> None:
    for color, (name, values) in zip(_colors(len(networks)), networks.items(), strict=True):
        marker = "o" if len(values) <= _MARKED_LAYERS else None
        places = range(1, len(values) + 1)
        axis.plot(places, values, label=name, color=color, linewidth=1.5, marker=marker, markersize=3)


def _error_line(axis: Axes, line: Line | None, color: str, style: dict[str, Any]) -> None:
    if line is None:
        return
    marker = "o" if style is _TEST and len(line.x) <= _MARKED_POINTS else None
    axis.plot(line.x, line.error, color=color, marker=marker, markersize=4, **style)
    if len(line.spread):
        error, spread = np.asarray(line.error), np.asarray(line.spread)
        axis.fill_between(line.x, error - spread, error + spread, color=color, alpha=_BAND, linewidth=0)


def _legend_lines(networks: Sequence[ErrorCurves]) -> list[Any]:
    """Return legend entries: networks by colour, then the bold and the dashed line."""
    from matplotlib.lines import Line2D

    colors = zip(_colors(len(networks)), networks, strict=True)
    lines = [Line2D([], [], color=color, label=network.name, **_TEST) for color, network in colors]
    if any(network.test for network in networks):
        label = " or ".join(sorted({network.held_out for network in networks if network.test}))
        lines.append(Line2D([], [], color=_NEUTRAL, label=label, **_TEST))
    if any(network.train for network in networks):
        lines.append(Line2D([], [], color=_NEUTRAL, label="training", **_TRAIN))
    return lines


def _colors(count: int) -> list[str]:
    return [PALETTE[index % len(PALETTE)] for index in range(count)]
