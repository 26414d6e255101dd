"""The family as a table, beside the published figures: what `python -m resnet_core` prints."""

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
Left of "source" is ours, right of it is what that source publishes (resnet_core/models/published.py).
layers: as the names count them: stem, branches and classifier. A deep stem is one; ResNet-RS's names are rounded.
G mult-adds: 10^9 multiply-adds of convolutions and linear layers for one image, 224 pixels a side, 32 for CIFAR.
torchvision counts the same; timm also two for every value that a norm gives, which is the whole difference.
Of the paper's figures, which are rounded, differences are taken after rounding ours as far.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A network beside one published figure of it, if there is any."""

    name: ModelName
    layers: int
    cost: Cost
    """At the usual size of images."""
    figure: Figure | None = None
    cost_there: Cost | None = None
    """At the figure's size of images."""

    @property
    def parameter_difference(self) -> Decimal | None:
        """Ours less the published number; in millions, ours rounded as it is, where it is rounded."""
        if self.figure is None:
            return None
        if self.figure.parameters is not None:
            return Decimal(self.cost.parameters - self.figure.parameters)
        return _after_rounding(self.cost.parameters, 6, self.figure.millions)

    @property
    def multiply_add_difference(self) -> Decimal | None:
        """Ours less the published number, in 10^9, ours rounded as it is."""
        if self.figure is None or self.cost_there is None:
            return None
        return _after_rounding(self.cost_there.multiply_adds, 9, self.figure.billions)

    @property
    def multiply_add_share(self) -> float | None:
        """Ours less the published number, as a share of that."""
        if self.figure is None or self.cost_there is None or self.figure.billions is None:
            return None
        return self.cost_there.multiply_adds / float(self.figure.billions * 10**9) - 1


def compare(name: ModelName, figure: Figure | None = None) -> Comparison:
    """The network of a name, or what the figure's source means by that name."""
    config = ModelConfig(name=name, **(figure.changes if figure else {}))
    size, classes = (224, 1000) if config.family == "imagenet" else (32, 10)
    return Comparison(
        name=name,
        layers=config.variant.layers,
        cost=cost(config.variant, size=size, num_classes=classes),
        figure=figure,
        cost_there=cost(config.variant, size=figure.size, num_classes=classes) if figure else None,
    )


def comparisons() -> Iterator[Comparison]:
    """Every network, once per figure; without figures, once."""
    for name in VARIANTS:
        figures: list[Figure | None] = [figure for figure in FIGURES if figure.name == name]
        yield from (compare(name, figure) for figure in figures or [None])


def render(rows: Iterable[Comparison]) -> str:
    """The table as text."""
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


def _own(row: Comparison) -> tuple[str, ...]:
    return row.name, str(row.layers), f"{row.cost.parameters:,}", _billions(row.cost)


def _published(row: Comparison) -> tuple[str, ...]:
    if row.figure is None:
        return ("",) * (len(_TITLES) - len(_own(row)))
    return (
        row.figure.source,
        *_published_parameters(row, row.figure),
        *_published_work(row, row.figure),
        row.figure.note,
    )


def _published_parameters(row: Comparison, figure: Figure) -> tuple[str, str]:
    if figure.parameters is not None:
        return f"{figure.parameters:,}", str(row.parameter_difference)
    if figure.millions is not None:
        return f"{figure.millions}M", str(row.parameter_difference)
    return "", ""


def _published_work(row: Comparison, figure: Figure) -> tuple[str, str, str, str]:
    share = row.multiply_add_share
    if share is None or row.cost_there is None:
        return "", "", "", ""
    difference = str(row.multiply_add_difference) if figure.source == "paper" else f"{share:+.2%}"
    return str(figure.billions), str(figure.size), _billions(row.cost_there), difference


def _billions(cost: Cost) -> str:
    return f"{cost.multiply_adds / 1e9:.3f}"


def _after_rounding(number: int, exponent: int, published: Decimal | None) -> Decimal | None:
    if published is None:
        return None
    return Decimal(number).scaleb(-exponent).quantize(published) - published
