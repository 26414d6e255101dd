"""Object detection: torchvision's detectors on any four-stage network of `resnet_core`, and exact evaluation.

model.py                 Faster R-CNN, RetinaNet and FCOS on a feature pyramid
sums.py                  boxes of all images of all ranks
average_precision.py     average precision by COCO's and by Pascal VOC's rules
"""

from resnet_core.detection.average_precision import ScoredBoxes, coco_metrics, voc_average_precision
from resnet_core.detection.model import PyramidBackbone, faster_rcnn, fcos, freeze_norms, retinanet
from resnet_core.detection.sums import DetectionSums

__all__ = [
    "DetectionSums",
    "PyramidBackbone",
    "ScoredBoxes",
    "coco_metrics",
    "faster_rcnn",
    "fcos",
    "freeze_norms",
    "retinanet",
    "voc_average_precision",
]
