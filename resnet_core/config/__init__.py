"""Sections of a recipe that the core reads: frozen dataclasses that check their values and do not import torch.

A value that no run can use raises ValueError with the field's name in the recipe, such as `optim.momentum`.
"""

from resnet_core.config.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, Rgb
from resnet_core.config.compute import ComputeConfig, Precision
from resnet_core.config.model import DropPathShape, Family, Location, ModelConfig
from resnet_core.config.optim import Loss, LossWeightsConfig, MomentumForm, OptimConfig, OptimizerName
from resnet_core.config.schedule import CurriculumConfig, ScheduleConfig, Shape, Unit, WarmupShape
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
    "LossWeightsConfig",
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
