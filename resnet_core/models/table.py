"""Table of the networks with the published figures, which `python -m resnet_core` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from resnet_core.config.model import ModelConfig
from resnet_core.config.variants import VARIANTS, ModelName
from resnet_core.models.cost import Cost, cost
from resnet_core.models.published import FIGURES, Figure

_TITLES = (
    *("network", "layers", "parameters", "G mult-adds", "source"),
    *("parameters", "difference", "G mult-adds", "at px", "ours there", "difference", "note"),
)
_LEFT = ("network", "source", "note")
_LEGEND = """
Columns left of "source" are ours; columns right of it are published by that source (resnet_core/models/published.py).
layers: counted as in the names: stem, branches and classifier. A deep stem counts once; ResNet-RS's names are rounded.
G mult-adds: 10^9 multiply-adds of convolutions and linear layers for one image, 224 pixels a side, 32 for CIFAR.
torchvision counts the same. timm also counts two for every output of a norm, which is the whole difference.
The paper's figures are rounded: for differences, ours are rounded to the same decimals.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRow:
    """One network and one published figure of it, if there is any."""

    name: ModelName
    layers: int
    cost: Cost
    """Cost at the usual size of images."""
    figure: Figure | None = None
    cost_there: Cost | None = None
    """Cost at the figure's size of images."""

    @property
    def parameter_difference(self) -> Decimal | None:
        """Return ours minus the published number; if that is rounded, in millions, with ours rounded too."""
        if self.figure is None:
            return None
        if self.figure.parameters is not None:
            return Decimal(self.cost.parameters - self.figure.parameters)
        return _after_rounding(self.cost.parameters, 6, self.figure.millions)

    @property
    def multiply_add_difference(self) -> Decimal | None:
        """Return ours minus the published number, in 10^9, with ours rounded to the same decimals."""
        if self.figure is None or self.cost_there is None:
            return None
        return _after_rounding(self.cost_there.multiply_adds, 9, self.figure.billions)

    @property
    def multiply_add_share(self) -> float | None:
        """Return ours minus the published number, as a fraction of the published number."""
        if self.figure is None or self.cost_there is None or self.figure.billions is None:
            return None
        return self.cost_there.multiply_adds / float(self.figure.billions * 10**9) - 1


def compare(name: ModelName, figure: Figure | None = None) -> TableRow:
    """Return the row of a network, or of the network that the figure's source has under that name."""
    config = ModelConfig(name=name, **(figure.changes if figure else {}))
    size, classes = (224, 1000) if config.family == "imagenet" else (32, 10)
    return TableRow(
        name=name,
        layers=config.variant.layers,
        cost=cost(config.variant, size=size, num_classes=classes),
        figure=figure,
        cost_there=cost(config.variant, size=figure.size, num_classes=classes) if figure else None,
    )


def comparisons() -> Iterator[TableRow]:
    """Yield every network once per figure, or once if it has no figures."""
    for name in VARIANTS:
        figures: list[Figure | None] = [figure for figure in FIGURES if figure.name == name]
        yield from (compare(name, figure) for figure in figures or [None])


def render(rows: Iterable[TableRow]) -> str:
    """Return the table as text."""
    cells = [_TITLES, *(_own(row) + _published(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if title in _LEFT else cell.rjust(width)
            for title, cell, width in zip(_TITLES, row, widths, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines) + "\n" + _LEGEND


def _own(row: TableRow) -> tuple[str, ...]:
    return row.name, str(row.layers), f"{row.cost.parameters:,}", _billions(row.cost)


def _published(row: TableRow) -> tuple[str, ...]:
    if row.figure is None:
        return ("",) * (len(_TITLES) - len(_own(row)))
    return (
        row.figure.source,
        *_published_parameters(row, row.figure),
        *_published_work(row, row.figure),
        row.figure.note,
    )


def _published_parameters(row: TableRow, figure: Figure) -> tuple[str, str]:
    if figure.parameters is not None:
        return f"{figure.parameters:,}", str(row.parameter_difference)
    if figure.millions is not None:
        return f"{figure.millions}M", str(row.parameter_difference)
    return "", ""


def _published_work(row: TableRow, figure: Figure) -> tuple[str, str, str, str]:
    fraction = row.multiply_add_share
    if fraction is None or row.cost_there is None:
        return "", "", "", ""
    difference = str(row.multiply_add_difference) if figure.source == "paper" else f"{fraction:+.2%}"
    return str(figure.billions), str(figure.size), _billions(row.cost_there), difference


def _billions(cost: Cost) -> str:
    return f"{cost.multiply_adds / 1e9:.3f}"


def _after_rounding(number: int, exponent: int, published: Decimal | None) -> Decimal | None:
    if published is None:
        return None
    return Decimal(number).scaleb(-exponent).quantize(published) - published
