"""Style of all figures. Figures are made without pyplot: no global state, no display, nothing to close."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#2b2d33"
FAINT = "#d5d8dd"
PALETTE = ("#2a6f77", "#c8553d", "#6f5aa8", "#c99a2e", "#3f77b5", "#7a8b3c", "#a3466c", "#6b7280")
"""Colours of lines in one figure; readers with red-green colour blindness can distinguish them."""
_DPI = 130


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; width and height are in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def frame(axis: Axes, x_label: str, y_label: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(FAINT)
    axis.tick_params(colors=INK, labelsize=9, length=0)
    axis.grid(axis="y", color=FAINT, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel(x_label, color=INK)
    axis.set_ylabel(y_label, color=INK)
