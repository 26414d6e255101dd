"""Segmentation networks: a backbone, one of torchvision's heads on its last features, and an auxiliary head.

Names of tensors are those of torchvision's models, so its published weights fit.

Shapes: B images, C channels, H and W pixels, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from resnet_core.models.backbone import head_features, remove_head
from resnet_core.models.resnet import ResNet, feature_channels

_ATROUS_RATES_AT_1 = (96, 192, 288)


class SegmentationModel(nn.Module):
    """Backbone and heads; every head's logits are resized to the image."""

    def __init__(self, backbone: ResNet, classifier: nn.Module, aux_classifier: nn.Module | None = None) -> None:
        super().__init__()
        remove_head(backbone)
        self.backbone, self.classifier, self.aux_classifier = backbone, classifier, aux_classifier

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return logits, B x K x H x W: "out", and in training mode those of the auxiliary head, "aux"."""
        features = list(head_features(self.backbone, images_BCHW).values())
        size = images_BCHW.shape[-2:]
        logits = {"out": _resized(self.classifier(features[-1]), size)}
        if self.training and self.aux_classifier is not None:
            logits["aux"] = _resized(self.aux_classifier(features[-2]), size)
        return logits


def fcn(network: ResNet, num_classes: int, *, auxiliary: bool = True) -> SegmentationModel:
    """Build torchvision's FCN (Long et al. 2015, arXiv 1411.4038) on a network, which loses its last layer.

    Args:
        network: torchvision's models have `output_stride=8`.
        num_classes: number of classes, the background included.
        auxiliary: add a second head on the last stage but one; it is used in training mode only.
    """
    first, last = _last_channels(network)
    return SegmentationModel(network, FCNHead(last, num_classes), FCNHead(first, num_classes) if auxiliary else None)


def deeplabv3(network: ResNet, num_classes: int, *, auxiliary: bool = True) -> SegmentationModel:
    """Build torchvision's DeepLabV3 (Chen et al. 2017, arXiv 1706.05587) on a network, which loses its last layer.

    The atrous rates are the paper's: (12, 24, 36) at output stride 8, (6, 12, 18) at 16, in proportion at others.
    Arguments are those of `fcn`. In training mode the head needs two images or more: it normalizes one pooled value
    per image.
    """
    first, last = _last_channels(network)
    rates = [rate // network.variant.stride for rate in _ATROUS_RATES_AT_1]
    head = DeepLabHead(last, num_classes, rates)
    return SegmentationModel(network, head, FCNHead(first, num_classes) if auxiliary else None)


def _last_channels(network: ResNet) -> tuple[int, int]:
    """Return the channels of the last two stages."""
    *_, first, last = feature_channels(network).values()
    return first, last


def _resized(logits_BKHW: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(logits_BKHW, size=size, mode="bilinear", align_corners=False)
