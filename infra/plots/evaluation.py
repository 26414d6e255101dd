"""Figures of an evaluation: how far a model's confidence can be trusted, and what another model changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.plots.style import FAINT, INK, PALETTE, frame, new_figure
from infra.plots.training import image_grid, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_WORSE, _BETTER = PALETTE[1], PALETTE[0]
_MOST_CLASSES = 24  # in a figure; of more classes, those that change most in either direction


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """An image that only one of two models classifies correctly."""

    image: NDArray[np.uint8]  # HxWx3
    label: str
    wrong: str  # the answer of the other model
    gained: bool  # whether the new model is the correct one


def reliability(confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_], *, bins: int) -> Figure:
    """Plot accuracy over confidence in equal bins, above the images per bin; the diagonal is perfect calibration."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = counts > 0
    accuracy = np.bincount(place, correct, minlength=bins)[filled] / counts[filled]
    mean = np.bincount(place, confidence, minlength=bins)[filled] / counts[filled]
    error = float((np.abs(accuracy - mean) * counts[filled]).sum() / counts.sum())
    middles, width = (np.arange(bins) + 0.5) / bins, 0.92 / bins
    figure = new_figure(5.2, 6)
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    above.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, zorder=1)
    above.bar(middles[filled], accuracy, width, color=_BETTER, alpha=0.35, zorder=2)
    above.plot(mean, accuracy, "o-", color=_BETTER, markersize=4, linewidth=1.2, zorder=3)
    frame(above, "", "accuracy")
    above.set_ylim(0, 1.02)
    above.set_title(f"expected calibration error {error:.2%}", fontsize=10, color=INK)
    below.bar(middles, counts, width, color=PALETTE[-1])
    below.set_yscale("log")
    below.set_xlim(0, 1)
    frame(below, "confidence: probability of the predicted class", "images")
    return figure


def class_changes(
    names: Sequence[str], differences: Sequence[float], significant: Sequence[bool], measure: str = "accuracy"
) -> Figure:
    """Plot the change of a measure of each class (-1 to 1), from worst to best; full colour = significant."""
    order = np.argsort(differences, kind="stable")
    left_out = len(order) - _MOST_CLASSES
    if left_out > 0:
        half = _MOST_CLASSES // 2
        order = np.concatenate([order[:half], order[-half:]])
    percent = [100 * differences[place] for place in order]
    figure = new_figure(7.5, 1.2 + 0.28 * len(order))
    axis = figure.subplots()
    colors = [_BETTER if value > 0 else _WORSE for value in percent]
    bars = axis.barh(range(len(order)), percent, color=colors, height=0.68)
    for bar, place in zip(bars, order, strict=True):
        bar.set_alpha(1.0 if significant[place] else 0.35)
    axis.bar_label(bars, [f"{value:+.1f}" for value in percent], padding=3, fontsize=8, color=INK)
    axis.set_yticks(range(len(order)), [short(names[place]) for place in order], fontsize=8)
    axis.axvline(0, color=INK, linewidth=0.8)
    frame(axis, f"change of the class's {measure}, points (pale: may be chance)", "")
    axis.grid(visible=False)
    axis.margins(x=0.14)
    if left_out > 0:
        title = f"{_MOST_CLASSES} of {len(names):,} classes: those that change most"
        axis.set_title(title, fontsize=10, color=INK)
    return figure


def class_scores(
    names: Sequence[str], precision: Sequence[float], recall: Sequence[float], f1: Sequence[float]
) -> Figure:
    """Plot precision, recall and F1 of each class (0 to 1), from the lowest F1 to the highest."""
    order = np.argsort(f1, kind="stable")[:_MOST_CLASSES]
    figure = new_figure(7.5, 1.4 + 0.32 * len(order))
    axis = figure.subplots()
    places = np.arange(len(order))
    axis.barh(places, [100 * f1[place] for place in order], color=_BETTER, alpha=0.35, height=0.68, label="F1")
    for values, mark, name in ((precision, "|", "precision"), (recall, "o", "recall")):
        axis.scatter([100 * values[place] for place in order], places, marker=mark, color=INK, s=36, label=name)
    axis.set_yticks(places, [short(names[place]) for place in order], fontsize=8)
    axis.set_xlim(0, 101)
    frame(axis, "percent", "")
    axis.grid(visible=False)
    axis.legend(fontsize=8, loc="lower right")
    if len(names) > _MOST_CLASSES:
        axis.set_title(f"{_MOST_CLASSES} of {len(names):,} classes: those with the lowest F1", fontsize=10, color=INK)
    return figure


def average_precisions(names: Sequence[str], precisions: Sequence[float]) -> Figure:
    """Plot the average precision of each class (0 to 1, NaN without images), lowest first."""
    order = np.argsort(precisions, kind="stable")[:_MOST_CLASSES]
    figure = new_figure(7.5, 1.2 + 0.28 * len(order))
    axis = figure.subplots()
    values = [100 * np.nan_to_num(precisions[place]) for place in order]
    bars = axis.barh(range(len(order)), values, color=_BETTER, height=0.68)
    axis.bar_label(bars, [f"{value:.1f}" for value in values], padding=3, fontsize=8, color=INK)
    axis.set_yticks(range(len(order)), [short(names[place]) for place in order], fontsize=8)
    axis.set_xlim(0, 108)
    frame(axis, "average precision, percent", "")
    axis.grid(visible=False)
    if len(names) > _MOST_CLASSES:
        axis.set_title(f"{_MOST_CLASSES} of {len(names):,} classes: the lowest", fontsize=10, color=INK)
    return figure


def flips(sheet: Sequence[Flip]) -> Figure:
    """Show images that only one of two models gets right, each titled with its class and the wrong answer."""
    titles = [f"{short(flip.label)}\n{'was' if flip.gained else 'now'}: {short(flip.wrong)}" for flip in sheet]
    colors = [_BETTER if flip.gained else _WORSE for flip in sheet]
    return image_grid([flip.image for flip in sheet], titles, colors, empty="no image changes between right and wrong")
