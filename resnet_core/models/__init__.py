"""The networks: one family, from the paper's tables to what came after it."""

from resnet_core.models.resnet import ResNet, build_model

__all__ = ["ResNet", "build_model"]
