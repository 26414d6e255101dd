"""Which network: the recipe's section `model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from resnet_core.config.check import require, require_choice

ImageNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
CifarName = Literal["resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202"]
ModelName = Literal[ImageNetName, CifarName]
Family = Literal["imagenet", "cifar"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which network. The names are torchvision's for ImageNet and the paper's (Section 4.2) for CIFAR."""

    name: ModelName = "resnet20"
    num_classes: int = 0
    """Outputs of the last layer; 0 = as many as the data set has (filled in by the pipeline)."""
    zero_init_last: bool = False
    """Start every residual branch at zero, through the scale of its last norm (Goyal et al. 2017, Section 5.1)."""

    def __post_init__(self) -> None:
        require_choice("model.name", self.name, ModelName)
        require(self.num_classes >= 0, "model.num_classes", "at least 0", self.num_classes)

    @property
    def family(self) -> Family:
        """Which of the paper's two designs: four stages for ImageNet, or three narrow ones for CIFAR."""
        return "cifar" if self.name in get_args(CifarName) else "imagenet"
