"""Networks: the paper's ResNets and their published successors, as one family."""

from resnet_core.models.blocks import ResidualBlock
from resnet_core.models.freezing import freeze, freeze_all_but_head, frozen_modules, lr_factors
from resnet_core.models.growth import depths_of, grow
from resnet_core.models.resnet import ResNet, build_model, builder, feature_channels, set_drop_path, set_generator
from resnet_core.models.weights import from_timm, from_torchvision, load_weights, to_timm, to_torchvision

__all__ = [
    "ResNet",
    "ResidualBlock",
    "build_model",
    "builder",
    "depths_of",
    "feature_channels",
    "freeze",
    "freeze_all_but_head",
    "from_timm",
    "from_torchvision",
    "frozen_modules",
    "grow",
    "load_weights",
    "lr_factors",
    "set_drop_path",
    "set_generator",
    "to_timm",
    "to_torchvision",
]
