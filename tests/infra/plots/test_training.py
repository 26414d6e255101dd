"""Figures have what a person looks for in them."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from infra.plots.evaluation import Flip, class_changes, flips, reliability
from infra.plots.training import Mistake, confused_pairs, confusion, confusion_of_pairs, curves, mistakes, worst_pairs
from infra.tracking.metric_point import MetricPoint


def _texts(figure: Figure) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


def _share_of_ink(figure: Figure) -> float:
    """Of the pixels, how many are not white."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return float((np.asarray(Image.open(file).convert("L")) < 250).mean())


def test_curves_by_name() -> None:
    records = [
        MetricPoint(step=step, time_ms=0, metrics={"train/loss": 2.0 / step, "train/accuracy": 0.5, "lr": 0.1})
        for step in range(1, 21)
    ]
    records += [
        MetricPoint(step=step, time_ms=0, metrics={"test/loss": 1.0, "test/accuracy": 0.75}) for step in (10, 20)
    ]
    figures = curves(records, steps_per_epoch=10)
    assert list(figures) == ["loss", "accuracy", "learning_rate"]
    lines = {str(line.get_label()): line for line in figures["accuracy"].axes[0].get_lines()}
    assert np.asarray(lines["test/accuracy"].get_xdata()).tolist() == [10, 20]
    assert np.asarray(lines["test/accuracy"].get_ydata()).tolist() == [75.0, 75.0]
    ends_of_epochs = [line.get_xdata()[0] for label, line in lines.items() if label.startswith("_")]  # type: ignore[index]
    assert ends_of_epochs == [10, 20]
    assert all(_share_of_ink(figure) > 0.005 for figure in figures.values())


def test_no_records_no_curves() -> None:
    assert curves([]) == {}


@pytest.mark.parametrize("classes", [2, 10, 30])
def test_a_small_confusion_names_its_classes(classes: int) -> None:
    matrix = np.diag(np.full(classes, 1234))
    matrix[0, 1] = 56
    texts = _texts(confusion(matrix, [f"class {k}" for k in range(classes)]))
    assert {f"class {k}" for k in range(classes)} <= set(texts)
    assert ("56" in texts) == (classes <= 15)


def test_a_large_confusion_names_the_worst_pairs() -> None:
    matrix = np.diag(np.full(1000, 40))
    matrix[17, 903] = 9
    matrix[5, 6] = 3
    figure = confusion(matrix, [f"class {k}" for k in range(1000)])
    texts = _texts(figure)
    assert texts.index("class 17 → class 903") < texts.index("class 5 → class 6")
    assert "1,000 classes in 100 groups; 100.0% correct" in texts
    assert _share_of_ink(figure) > 0.005


def test_a_sheet_of_mistakes() -> None:
    generator = np.random.default_rng(0)
    sheet = [
        Mistake(
            image=generator.integers(0, 200, (28, 28, 3), dtype=np.uint8), label="cat", predicted="dog", probability=0.7
        )
        for _ in range(8)
    ]
    figure = mistakes(sheet)
    assert _texts(figure).count("cat\n→ dog  70%") == 8
    assert _share_of_ink(figure) > 0.3
    assert "no mistakes" in _texts(mistakes([]))


def test_pairs_by_how_often_they_are_confused() -> None:
    matrix = np.diag(np.full(4, 9))
    matrix[2, 0], matrix[1, 3], matrix[0, 1] = 5, 7, 1
    assert confused_pairs(matrix, 2) == [(1, 3, 7), (2, 0, 5)]
    assert confused_pairs(np.diag(np.full(4, 9)), 2) == []


@pytest.mark.parametrize("classes", [4, 40, 250])
def test_a_confusion_of_pairs_is_that_of_their_matrix(classes: int) -> None:
    drawn = np.random.default_rng(0).integers(0, classes, (900, 2))
    found, images = np.unique(drawn, axis=0, return_counts=True)
    matrix = np.zeros((classes, classes), dtype=np.int64)
    matrix[found[:, 0], found[:, 1]] = images
    pairs, names = np.concatenate([found, images[:, None]], axis=1), [f"class {k}" for k in range(classes)]
    files = []
    for figure in (confusion(matrix, names), confusion_of_pairs(pairs, names)):
        file = io.BytesIO()
        figure.savefig(file, format="png")
        files.append(file.getvalue())
    assert files[0] == files[1]
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:9]
    expected = [(*divmod(cell, classes), int(wrong.flat[cell])) for cell in order.tolist() if wrong.flat[cell]]
    assert worst_pairs(pairs, 9) == expected == confused_pairs(matrix, 9)


def test_the_confusion_of_twenty_thousand_classes() -> None:
    pairs = np.array([[0, 0, 5], [7, 21_840, 9], [21_840, 21_840, 6]])
    texts = _texts(confusion_of_pairs(pairs, [f"class {k}" for k in range(21_841)]))
    assert "21,841 classes in 100 groups; 55.0% correct" in texts
    assert "class 7 → class 21840" in texts


def test_reliability_is_accuracy_by_confidence() -> None:
    confidence = np.array([0.55, 0.55, 0.95, 0.95, 0.95, 0.95])
    figure = reliability(confidence, np.array([1, 0, 1, 1, 1, 0], dtype=bool), bins=10)
    above, below = figure.axes
    assert np.asarray(above.get_lines()[1].get_ydata()).tolist() == [0.5, 0.75]
    assert np.asarray(above.get_lines()[1].get_xdata()).tolist() == pytest.approx([0.55, 0.95])
    assert [bar.get_height() for bar in below.patches] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 4]
    error = (2 * 0.05 + 4 * 0.2) / 6
    assert f"expected calibration error {error:.2%}" in _texts(figure)


@pytest.mark.parametrize("classes", [3, 1000])
def test_classes_that_change_are_named_as_far_as_can_be_read(classes: int) -> None:
    differences = np.linspace(-0.5, 0.25, classes).tolist()
    figure = class_changes([f"class {k}" for k in range(classes)], differences, [k == 0 for k in range(classes)])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == min(classes, 24)
    assert (names[0], names[-1]) == ("class 0", f"class {classes - 1}")
    assert [bar.get_alpha() for bar in figure.axes[0].patches][:2] == [1.0, 0.35]
    assert ("24 of 1,000 classes: those that change most" in _texts(figure)) == (classes == 1000)


def test_a_sheet_of_flips() -> None:
    image = np.zeros((28, 28, 3), dtype=np.uint8)
    sheet = [Flip(image=image, label="cat", wrong="dog", gained=gained) for gained in (False, True)]
    texts = _texts(flips(sheet))
    assert {"cat\nnow: dog", "cat\nwas: dog"} <= set(texts)
    assert "no image changes between right and wrong" in _texts(flips([]))


def test_no_display_is_asked_for() -> None:
    code = "from infra.plots import training as plots; import sys; f = plots.mistakes([]); "
    code += "f.savefig('/dev/null', format='png'); "
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
