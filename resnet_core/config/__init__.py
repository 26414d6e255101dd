"""The core's sections of a recipe: frozen, each checks itself, none imports torch.

A value that cannot be trained with raises ValueError naming its field as the recipe spells it, e.g. `optim.momentum`.
"""

from resnet_core.config.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, Rgb
from resnet_core.config.compute import ComputeConfig, Precision
from resnet_core.config.curriculum import CurriculumConfig
from resnet_core.config.model import DropPathShape, Family, Location, ModelConfig
from resnet_core.config.optim import Loss, MomentumForm, OptimConfig, OptimizerName
from resnet_core.config.schedule import ScheduleConfig, Shape, Unit, WarmupShape
from resnet_core.config.variants import VARIANTS, CifarName, ImageNetName, ModelName, Variant

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "VARIANTS",
    "AugmentConfig",
    "CifarName",
    "ComputeConfig",
    "CurriculumConfig",
    "DropPathShape",
    "Family",
    "ImageNetName",
    "Location",
    "Loss",
    "ModelConfig",
    "ModelName",
    "MomentumForm",
    "OptimConfig",
    "OptimizerName",
    "Precision",
    "Rgb",
    "ScheduleConfig",
    "Shape",
    "Unit",
    "Variant",
    "WarmupShape",
]
