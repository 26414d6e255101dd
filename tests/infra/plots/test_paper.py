"""The paper's figures have the lines that a reader compares."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from infra.plots.paper import ErrorCurves, Line, error_curves, gradient_norms, response_deviations

LAYERS = {
    "plain-20": [("conv1", 2.0), ("layer1.0.conv1", 0.5), ("layer1.0.conv2", 1.0)],
    "ResNet-20": [("conv1", 0.4), ("layer1.0.conv1", 0.6)],
}


def _pixels(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


def _has_color(figure: Figure, color: str) -> bool:
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return bool((_pixels(figure) == (red, green, blue)).all(axis=2).any())


def _lines(axis: Axes) -> list[tuple[list[float], float, str]]:
    return [
        (np.asarray(line.get_ydata()).tolist(), line.get_linewidth(), str(line.get_linestyle()))
        for line in axis.get_lines()
    ]


def _legend(axis: Axes) -> list[str]:
    legend = axis.get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def test_training_error_is_thin_and_dashed_test_error_bold() -> None:
    def curves(name: str, errors: list[float]) -> ErrorCurves:
        lower = [error - 1 for error in errors]
        test = Line(x=[0, 100, 200], error=errors, spread=[0.5, 0.5, 0.5])
        return ErrorCurves(name=name, train=Line(x=[0, 100, 200], error=lower), test=test)

    panels = {
        "plain": [curves("plain-20", [60, 20, 9]), curves("plain-56", [70, 25, 12])],
        "residual": [curves("ResNet-20", [60, 19, 8]), curves("ResNet-56", [65, 18, 7])],
    }
    figure = error_curves(panels, x_label="epoch", most=40)
    plain, residual = figure.axes
    train, test, *_ = _lines(plain)
    assert (train[0], test[0]) == ([59, 19, 8], [60, 20, 9])
    assert (train[2], test[2]) == ("--", "-")
    assert test[1] >= 2 * train[1]
    assert [axis.get_title() for axis in figure.axes] == ["plain", "residual"]
    assert _legend(residual) == ["ResNet-20", "ResNet-56", "test", "training"]
    assert plain.get_ylim() == residual.get_ylim() == (0, 40)
    assert plain.get_xlabel() == "epoch"
    assert len(plain.collections) == 2  # the bands of the seeds
    colors = [to_hex(line.get_color()) for line in plain.get_lines()[1::2]]
    assert colors == [to_hex(line.get_color()) for line in residual.get_lines()[1::2]]
    assert len(set(colors)) == 2
    assert all(_has_color(figure, color) for color in colors)


def test_a_network_without_training_error() -> None:
    figure = error_curves({"": [ErrorCurves(name="a", test=Line(x=[1, 2], error=[3.0, 2.0]))]})
    assert _legend(figure.axes[0]) == ["a", "test"]
    assert len(figure.axes[0].get_lines()) == 1


def test_responses_in_order_and_ranked() -> None:
    figure = response_deviations({"": LAYERS})
    ordered, ranked = figure.axes
    assert [values for values, *_ in _lines(ordered)] == [[2.0, 0.5, 1.0], [0.4, 0.6]]
    assert [values for values, *_ in _lines(ranked)] == [[2.0, 1.0, 0.5], [0.6, 0.4]]
    assert np.asarray(ordered.get_lines()[0].get_xdata()).tolist() == [1, 2, 3]
    assert _legend(ordered) == ["plain-20", "ResNet-20"]
    assert all(_has_color(figure, to_hex(line.get_color())) for line in ordered.get_lines())


def test_panels_of_responses_share_their_axes() -> None:
    figure = response_deviations({name: {name: layers} for name, layers in LAYERS.items()})
    assert [axis.get_title() for axis in figure.axes] == ["plain-20", "ResNet-20", "", ""]
    assert len({axis.get_ylim() for axis in figure.axes}) == 1


def test_gradients_on_a_logarithmic_axis() -> None:
    figure = gradient_norms({"": LAYERS})
    [axis] = figure.axes
    assert axis.get_yscale() == "log"
    assert [values for values, *_ in _lines(axis)] == [[2.0, 0.5, 1.0], [0.4, 0.6]]
    assert (_pixels(figure) < 250).any(axis=2).mean() == pytest.approx(0.03, abs=0.025)
