"""Published parameters and multiply-adds of networks, as printed, for comparison with ours.

Sources:
    paper         He et al. 2015 (arXiv 1512.03385): multiply-adds in Table 1, plain-34 in Section 3.3; parameters in
                  Table 6. A plain network has as many as its residual network.
    torchvision   metadata of the weights, `num_params` and `_ops` (torchvision/models/resnet.py)
    timm          parameters of the models of timm 1.0.31; multiply-adds of huggingface/pytorch-image-models,
                  results/benchmark-infer-amp-nhwc-pt113-cu117-rtx3090.csv
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from resnet_core.config.variants import ModelName

Source = Literal["paper", "torchvision", "timm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """Published numbers of one network from one source."""

    name: ModelName
    source: Source
    parameters: int | None = None
    millions: Decimal | None = None
    """Parameters in millions, if the source rounds them; the decimals are the source's."""
    billions: Decimal | None = None
    """Multiply-adds of one image, in 10^9."""
    size: int = 224
    """Side of that image, pixels."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the recipe's section `model` that give the source's network, if it differs from ours of this name."""
    note: str = ""


def _paper(name: ModelName, billions: str, note: str = "", **changes: str) -> Figure:
    return Figure(name=name, source="paper", billions=Decimal(billions), changes=changes, note=note)


def _table_6(name: ModelName, millions: str) -> Figure:
    return Figure(name=name, source="paper", millions=Decimal(millions), size=32)


def _torchvision(name: ModelName, parameters: int, billions: str) -> Figure:
    return Figure(name=name, source="torchvision", parameters=parameters, billions=Decimal(billions))


def _timm(name: ModelName, parameters: int, billions: str, size: int = 224, **changes: str) -> Figure:
    note = f"timm's resnetv2_{name.removeprefix('resnet')}" if "block_order" in changes else ""
    return Figure(
        name=name,
        source="timm",
        parameters=parameters,
        billions=Decimal(billions),
        size=size,
        changes=changes,
        note=note,
    )


_V1 = "v1: stride on the 1x1"
_OPTION_A = "option A, as in Table 2"

FIGURES = (
    _paper("resnet18", "1.8", _OPTION_A, shortcut="A"),
    _paper("resnet34", "3.6", _OPTION_A, shortcut="A"),
    _paper("resnet50", "3.8", f"{_V1}; truncated to one decimal; the others are rounded", stride_on="1x1"),
    _paper("resnet101", "7.6", _V1, stride_on="1x1"),
    _paper("resnet152", "11.3", _V1, stride_on="1x1"),
    _paper("plain34", "3.6"),
    _torchvision("resnet18", 11_689_512, "1.814"),
    _torchvision("resnet34", 21_797_672, "3.664"),
    _torchvision("resnet50", 25_557_032, "4.089"),
    _torchvision("resnet101", 44_549_160, "7.801"),
    _torchvision("resnet152", 60_192_808, "11.514"),
    _torchvision("resnext50_32x4d", 25_028_904, "4.23"),
    _torchvision("resnext101_32x8d", 88_791_336, "16.414"),
    _torchvision("resnext101_64x4d", 83_455_272, "15.46"),
    _torchvision("wide_resnet50_2", 68_883_240, "11.398"),
    _torchvision("wide_resnet101_2", 126_886_696, "22.753"),
    _timm("resnet50", 25_549_352, "4.11", block_order="pre"),
    _timm("resnet101", 44_541_480, "7.83", block_order="pre"),
    _timm("resnet152", 60_185_128, "11.55", block_order="pre"),
    _timm("resnet50d", 25_568_584, "4.35", block_order="pre"),
    _timm("resnet50c", 25_576_264, "4.35"),
    _timm("resnet18d", 11_708_744, "2.06"),
    _timm("resnet34d", 21_816_904, "3.91"),
    _timm("resnet50d", 25_576_264, "4.35"),
    _timm("resnet101d", 44_568_392, "16.48", size=320),
    _timm("resnet152d", 60_212_040, "24.08", size=320),
    _timm("resnet200d", 64_693_064, "31.25", size=320),
    _timm("seresnet50", 28_088_024, "4.11"),
    _timm("ecaresnet50d", 25_576_350, "4.35"),
    _timm("resnetrs50", 35_691_912, "4.48"),
    _timm("resnetrs101", 63_618_696, "13.56", size=288),
    _timm("resnetrs152", 86_621_576, "24.34", size=320),
    _timm("resnetrs200", 93_209_992, "31.51", size=320),
    _timm("resnetrs270", 129_861_448, "51.13", size=352),
    _timm("resnetrs350", 163_956_168, "77.59", size=384),
    _timm("resnetrs420", 191_891_656, "108.45", size=416),
    _table_6("resnet20", "0.27"),
    _table_6("resnet32", "0.46"),
    _table_6("resnet44", "0.66"),
    _table_6("resnet56", "0.85"),
    _table_6("resnet110", "1.7"),
    _table_6("resnet1202", "19.4"),
)
