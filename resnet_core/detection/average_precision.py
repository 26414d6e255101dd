"""Average precision by COCO's rules, computed by pycocotools, and by Pascal VOC's.

COCO's metrics need pycocotools, the only package that `resnet_core` needs besides torch and torchvision
(docs/decisions/0041-pycocotools.md). It is imported when they are computed.

Shapes: I images, M objects, D detections, K classes without the background. A box is (x1, y1, x2, y2), the edges in
pixels of the image.
"""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

_STATS = {
    "average_precision": 0,
    "average_precision_50": 1,
    "average_precision_75": 2,
    "average_precision_small": 3,
    "average_precision_medium": 4,
    "average_precision_large": 5,
    "average_recall": 8,
}
"""Places in `COCOeval.stats`."""
_SIZED = ("average_precision_small", "average_precision_medium", "average_precision_large")
_POINTS = 10  # recalls 0, 0.1, …, 1 of VOC 2007


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredBoxes:
    """Detections and objects of images, on the CPU. A key is (image id, label); label 0 is the background."""

    ids_I: Tensor  # int64: every image, also one without boxes
    object_keys_M2: Tensor  # int64
    objects_M6: Tensor  # float64: box, area in pixels, 1 for an object that may be missed
    detection_keys_D2: Tensor  # int64
    detections_D5: Tensor  # float64: box, score

    def sorted(self) -> ScoredBoxes:
        """Return the same boxes by image id; the boxes of an image keep their order.

        Raises:
            ValueError: an image is there twice.
        """
        ids_I, counts = self.ids_I.unique(return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"image {int(ids_I[counts > 1][0])} was scored twice: an image must have an id of its own")
        objects, detections = (
            keys[:, 0].argsort(stable=True) for keys in (self.object_keys_M2, self.detection_keys_D2)
        )
        return ScoredBoxes(
            ids_I=ids_I,
            object_keys_M2=self.object_keys_M2[objects],
            objects_M6=self.objects_M6[objects],
            detection_keys_D2=self.detection_keys_D2[detections],
            detections_D5=self.detections_D5[detections],
        )


def coco_metrics(boxes: ScoredBoxes, num_classes: int) -> tuple[dict[str, float], Tensor]:
    """Return COCO's metrics by name, and the average precision of each class, float64 K.

    "average_precision" is the mean over IoU 0.50 to 0.95 and over the classes that have objects; "…_50" and "…_75" are
    those of one IoU; "…_small", "…_medium" and "…_large" are those of objects below 32², up to 96² and above 96²
    pixels, and are left out if there are none; "average_recall" is that of 100 detections per image. A class without
    objects has NaN; without any object all metrics are 0.

    Args:
        boxes: sorted by image.
        num_classes: the background included.

    Raises:
        ValueError: there is no image.
        ModuleNotFoundError: pycocotools is not installed.
    """
    if not len(boxes.ids_I):
        raise ValueError("nothing was scored: the split has no images")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints tables
        evaluation = _evaluated(boxes, num_classes)
    values = {name: float(evaluation.stats[place]) for name, place in _STATS.items()}
    metrics = {name: max(0.0, value) for name, value in values.items() if value >= 0 or name not in _SIZED}
    precision_TRK = torch.from_numpy(evaluation.eval["precision"])[:, :, :, 0, -1]  # all sizes, most detections
    by_class = precision_TRK.mean(dim=(0, 1))
    return metrics, torch.where(by_class < 0, torch.nan, by_class)


def _evaluated(boxes: ScoredBoxes, num_classes: int) -> Any:
    """Return pycocotools' `COCOeval` with its results."""
    from pycocotools.cocoeval import COCOeval

    objects = _annotations(boxes.object_keys_M2, boxes.objects_M6)
    detections = _annotations(boxes.detection_keys_D2, boxes.detections_D5)
    for annotation, row in zip(objects, boxes.objects_M6[:, 4:].tolist(), strict=True):
        annotation.update(area=row[0], iscrowd=int(row[1]))
    for annotation, score in zip(detections, boxes.detections_D5[:, 4].tolist(), strict=True):
        annotation.update(score=score)
    evaluation = COCOeval(*(_coco(boxes, each, num_classes) for each in (objects, detections)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def _annotations(keys_N2: Tensor, boxes_N4: Tensor) -> list[dict[str, Any]]:
    """Return boxes as COCO writes them; ids begin at 1, because pycocotools takes 0 for no match."""
    rows = zip(keys_N2.tolist(), boxes_N4[:, :4].tolist(), strict=True)
    return [
        {
            "id": number,
            "image_id": image,
            "category_id": label,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
        }
        for number, ((image, label), (x1, y1, x2, y2)) in enumerate(rows, start=1)
    ]


def _coco(boxes: ScoredBoxes, annotations: list[dict[str, Any]], num_classes: int) -> Any:
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in boxes.ids_I.tolist()],
        "categories": [{"id": label} for label in range(1, num_classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def voc_average_precision(
    boxes: ScoredBoxes, num_classes: int, *, threshold: float = 0.5, eleven_points: bool = False
) -> Tensor:
    """Return the average precision of each class by Pascal VOC's rules, float64 K; NaN for a class without objects.

    A detection belongs to the object of its class with the highest IoU. It is right if that is at least `threshold`
    and no detection with a higher score has the object. Difficult objects, and detections of them, do not count
    (Everingham et al. 2010, Section 4.2; VOCevaldet.m of the development kit).

    VOC's annotations name the first and the last pixel: (xmin - 1, ymin - 1, xmax, ymax) are the edges.

    Args:
        boxes: sorted by image.
        num_classes: the background included.
        threshold: IoU from which on a detection is right.
        eleven_points: mean of the precision at recalls 0, 0.1, …, 1 (VOC 2007); false = the area under the curve, as
            from VOC 2010 on.
    """
    ranked = (_ranked(boxes, label, threshold) for label in range(1, num_classes))
    return torch.tensor([_area(*each, eleven_points=eleven_points) for each in ranked], dtype=torch.float64)


def _area(right_D: Tensor, objects: int, *, eleven_points: bool) -> float:
    """Return the area under the highest precision at each recall or a higher one."""
    if not objects or not len(right_D):
        return 0.0 if objects else math.nan
    found_D = right_D.cumsum(dim=0)
    precision_D = found_D.double() / torch.arange(1, len(found_D) + 1)
    highest_D = precision_D.flip(0).cummax(dim=0).values.flip(0)
    if not eleven_points:
        return float((highest_D * right_D).sum()) / objects
    reached = found_D[:, None] * _POINTS >= torch.arange(_POINTS + 1) * objects  # integers: 3 of 10 reach 0.3
    return float(torch.where(reached, highest_D[:, None], 0).amax(dim=0).mean())


def _ranked(boxes: ScoredBoxes, label: int, threshold: float) -> tuple[Tensor, int]:
    """Return whether each detection of a class is right, by score, and the number of objects; difficult ones left out.

    Of equal scores the one of the lower image id comes first.
    """
    objects_M = boxes.object_keys_M2[:, 1] == label
    object_ids_M, objects_M6 = boxes.object_keys_M2[objects_M, 0], boxes.objects_M6[objects_M]
    detections_D = boxes.detection_keys_D2[:, 1] == label
    ids_D, detections_D5 = boxes.detection_keys_D2[detections_D, 0], boxes.detections_D5[detections_D]
    best_D = torch.full((len(ids_D),), -1)
    for image in ids_D.unique().tolist():
        own_D, own_M = (ids_D == image).nonzero()[:, 0], (object_ids_M == image).nonzero()[:, 0]
        if len(own_M):
            iou_D, nearest_D = box_iou(detections_D5[own_D, :4], objects_M6[own_M, :4]).max(dim=1)
            best_D[own_D] = torch.where(iou_D >= threshold, own_M[nearest_D], -1)
    difficult_M = objects_M6[:, 5] > 0
    taken, right = set[int](), list[bool]()
    for best in best_D[detections_D5[:, 4].argsort(descending=True, stable=True)].tolist():
        if best >= 0 and difficult_M[best]:
            continue
        right.append(best >= 0 and best not in taken)
        taken.add(best)
    return torch.tensor(right, dtype=torch.int64), int((~difficult_M).sum())
