"""Semantic segmentation: torchvision's heads on any network of `resnet_core`, their loss, and exact evaluation.

model.py    FCN and DeepLabV3
loss.py     cross entropy over pixels, with an auxiliary head
sums.py     confusion matrix over pixels, IoU, pixel accuracy
"""

from resnet_core.segmentation.loss import PixelLossConfig, pixel_loss, sum_pixel_loss
from resnet_core.segmentation.model import SegmentationModel, deeplabv3, fcn
from resnet_core.segmentation.sums import SegmentationSums

__all__ = [
    "PixelLossConfig",
    "SegmentationModel",
    "SegmentationSums",
    "deeplabv3",
    "fcn",
    "pixel_loss",
    "sum_pixel_loss",
]
