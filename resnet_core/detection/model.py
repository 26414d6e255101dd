"""Detectors: torchvision's Faster R-CNN, RetinaNet and FCOS on the stages of our networks.

Names of tensors are those of torchvision's models, so its published weights fit a network that torchvision has.

Shapes: B images, C channels, H and W pixels. Classes and labels are torchvision's: label 0 is the background, and
`num_classes` counts it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from resnet_core.models.backbone import head_features, remove_head
from resnet_core.models.freezing import freeze
from resnet_core.models.resnet import ResNet, feature_channels

TRAINABLE_STAGES = 3
"""torchvision's default for pretrained weights: stem and first stage do not train."""
PYRAMID_CHANNELS = 256
_STAGES = 4


class PyramidBackbone(nn.Module):
    """A network's stages C2 to C5, or C3 to C5, and torchvision's feature pyramid on them (Lin et al. 2017)."""

    def __init__(
        self,
        network: ResNet,
        extra: ExtraFPNBlock,
        *,
        first: int = 2,
        channels: int = PYRAMID_CHANNELS,
        trainable_stages: int = TRAINABLE_STAGES,
        frozen_norms: bool = True,
    ) -> None:
        """Take over the network, which loses its last layer.

        Args:
            network: of four stages.
            extra: makes the levels above C5.
            first: number of the first stage that the pyramid reads.
            channels: of every level.
            trainable_stages: as in torchvision, counted from the last: 5 = the whole network trains, 4 = all but the
                stem, 3 = all but the stem and the first stage, …, 0 = none. Frozen parts keep their statistics.
            frozen_norms: replace every BatchNorm by one whose statistics, scale and shift are constants.

        Raises:
            ValueError: the network has another number of stages, or `trainable_stages` is not in [0, 5].
        """
        super().__init__()
        _check(network, trainable_stages)
        remove_head(network)
        if frozen_norms:
            freeze_norms(network)
        parts: list[Any] = ["", "stem", *network.stages]
        freeze(network, parts[_STAGES + 1 - trainable_stages])
        width = feature_channels(network)
        self.levels = [name for name in width if int(name[1:]) >= first]
        self.body = network
        self.fpn = FeaturePyramidNetwork([width[name] for name in self.levels], channels, extra_blocks=extra)
        self.out_channels = channels

    def forward(self, images_BCHW: Tensor) -> OrderedDict[str, Tensor]:
        """Return the levels by torchvision's names: "0", "1", … from the finest, then those of the extra block."""
        features = head_features(self.body, images_BCHW)
        levels: OrderedDict[str, Tensor] = self.fpn(
            OrderedDict((str(index), features[name]) for index, name in enumerate(self.levels))
        )
        return levels


def faster_rcnn(
    network: ResNet,
    num_classes: int,
    *,
    trainable_stages: int = TRAINABLE_STAGES,
    frozen_norms: bool = True,
    pyramid_channels: int = PYRAMID_CHANNELS,
    **options: Any,
) -> FasterRCNN:
    """Build Faster R-CNN (Ren et al. 2015, arXiv 1506.01497) on C2 to C5.

    The defaults suit pretrained weights; for random weights torchvision trains everything: `trainable_stages=5,
    frozen_norms=False`. `PyramidBackbone` describes these two and the errors.

    Args:
        network: of four stages; it loses its last layer.
        num_classes: the background included.
        trainable_stages: how many of torchvision's five parts train.
        frozen_norms: whether every BatchNorm is constant.
        pyramid_channels: channels of the pyramid.
        options: torchvision's for the detector, such as min_size, max_size, image_mean, box_detections_per_img.
    """
    backbone = PyramidBackbone(
        network,
        LastLevelMaxPool(),
        channels=pyramid_channels,
        trainable_stages=trainable_stages,
        frozen_norms=frozen_norms,
    )
    return FasterRCNN(backbone, num_classes=num_classes, **options)


def retinanet(
    network: ResNet,
    num_classes: int,
    *,
    trainable_stages: int = TRAINABLE_STAGES,
    frozen_norms: bool = True,
    pyramid_channels: int = PYRAMID_CHANNELS,
    **options: Any,
) -> RetinaNet:
    """Build RetinaNet (Lin et al. 2017, arXiv 1708.02002) on C3 to C5. Arguments are those of `faster_rcnn`."""
    backbone = _without_c2(network, pyramid_channels, trainable_stages, frozen_norms)
    return RetinaNet(backbone, num_classes, **options)


def fcos(
    network: ResNet,
    num_classes: int,
    *,
    trainable_stages: int = TRAINABLE_STAGES,
    frozen_norms: bool = True,
    pyramid_channels: int = PYRAMID_CHANNELS,
    **options: Any,
) -> FCOS:
    """Build FCOS (Tian et al. 2019, arXiv 1904.01355) on C3 to C5. Arguments are those of `faster_rcnn`."""
    backbone = _without_c2(network, pyramid_channels, trainable_stages, frozen_norms)
    return FCOS(backbone, num_classes, **options)


def freeze_norms(module: nn.Module) -> None:
    """Replace every BatchNorm in `module` by torchvision's FrozenBatchNorm2d with the same tensors, in place."""
    for name, child in list(module.named_children()):
        if not isinstance(child, nn.BatchNorm2d):
            freeze_norms(child)
            continue
        frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
        frozen.load_state_dict(child.state_dict())
        module.add_module(name, frozen.to(child.weight))


def _without_c2(network: ResNet, channels: int, trainable_stages: int, frozen_norms: bool) -> PyramidBackbone:
    """Build the pyramid that RetinaNet and FCOS have: P3 to P5, and two convolutions that make P6 and P7."""
    return PyramidBackbone(
        network,
        LastLevelP6P7(channels, channels),
        first=3,
        channels=channels,
        trainable_stages=trainable_stages,
        frozen_norms=frozen_norms,
    )


def _check(network: ResNet, trainable_stages: int) -> None:
    if len(network.stages) != _STAGES:
        raise ValueError(f"a detector needs a network of {_STAGES} stages, such as resnet50: got {len(network.stages)}")
    if not 0 <= trainable_stages <= _STAGES + 1:
        raise ValueError(f"trainable_stages must be in [0, {_STAGES + 1}]: got {trainable_stages}")
