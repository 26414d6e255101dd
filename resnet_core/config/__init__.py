"""The core's sections of a recipe: frozen, each checks itself, none imports torch.

A value that cannot be trained with raises ValueError naming its field as the recipe spells it, e.g. `optim.momentum`.
"""

from resnet_core.config.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, Rgb
from resnet_core.config.compute import ComputeConfig, Precision
from resnet_core.config.model import CifarName, Family, ImageNetName, ModelConfig, ModelName
from resnet_core.config.optim import OptimConfig
from resnet_core.config.schedule import ScheduleConfig, Shape, Unit

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AugmentConfig",
    "CifarName",
    "ComputeConfig",
    "Family",
    "ImageNetName",
    "ModelConfig",
    "ModelName",
    "OptimConfig",
    "Precision",
    "Rgb",
    "ScheduleConfig",
    "Shape",
    "Unit",
]
