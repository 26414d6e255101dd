"""Exact evaluation of detection: the boxes of all images of all ranks, from which average precision is computed.

Shapes: I images, M objects, D detections. A box is (x1, y1, x2, y2), the edges in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from resnet_core.detection.average_precision import ScoredBoxes, coco_metrics
from resnet_core.distributed import gather_rows


class DetectionSums:
    """Detections and objects of a split, some 100 bytes for each box.

    Average precision needs the order of all scores, so it cannot be summed batch by batch: the ranks collect the boxes.
    The result does not depend on batches, ranks or the order of images.
    """

    def __init__(self, num_classes: int) -> None:
        """Begin with no image; `num_classes` counts the background, as in the detectors."""
        self.num_classes = num_classes
        self._parts = [_table([], [], [])]

    def update(
        self,
        ids: Sequence[int],
        predictions: Sequence[Mapping[str, Tensor]],
        targets: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Add images, each of which counts once. This waits for the device.

        Args:
            ids: unique in the split.
            predictions: what a detector returns in evaluation mode: boxes D x 4, labels D, scores D.
            targets: boxes M x 4 and labels M; optionally `iscrowd` M, for objects whose detection neither helps nor
                harms (COCO's crowds, VOC's difficult objects), and `area` M, the pixels of an object if they are not
                those of its box, for COCO's sizes.
        """
        self._parts.append(_table(ids, predictions, targets))

    def all_reduce(self) -> None:
        """Collect the boxes of all ranks on every rank; every rank must call this."""
        own = self._joined()
        self._parts = [ScoredBoxes(**{field.name: gather_rows(getattr(own, field.name)) for field in fields(own)})]

    @property
    def boxes(self) -> ScoredBoxes:
        """Return all boxes, by image id.

        Raises:
            ValueError: an image was added twice.
        """
        return self._joined().sorted()

    def metrics(self) -> dict[str, float]:
        """Return COCO's metrics, see `coco_metrics`.

        Raises:
            ValueError: no image was scored, or one twice.
        """
        return coco_metrics(self.boxes, self.num_classes)[0]

    def details(self) -> dict[str, Tensor]:
        """Return "average_precision", float64 by class without the background, and "count", the classes' objects."""
        boxes = self.boxes
        counts = boxes.object_keys_M2[:, 1].bincount(minlength=self.num_classes)[1:]
        return {"average_precision": coco_metrics(boxes, self.num_classes)[1], "count": counts}

    def _joined(self) -> ScoredBoxes:
        columns = {
            field.name: torch.cat([getattr(part, field.name) for part in self._parts]) for field in fields(ScoredBoxes)
        }
        self._parts = [ScoredBoxes(**columns)]
        return self._parts[0]


def _table(
    ids: Sequence[int], predictions: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]
) -> ScoredBoxes:
    objects = [_numbers(target["boxes"], _area_and_crowd(target)) for target in targets]
    detections = [_numbers(found["boxes"], found["scores"][:, None]) for found in predictions]
    return ScoredBoxes(
        ids_I=torch.tensor(ids, dtype=torch.int64),
        object_keys_M2=_keys(ids, targets),
        objects_M6=torch.cat([torch.zeros(0, 6, dtype=torch.float64), *objects]),
        detection_keys_D2=_keys(ids, predictions),
        detections_D5=torch.cat([torch.zeros(0, 5, dtype=torch.float64), *detections]),
    )


def _numbers(*columns: Tensor) -> Tensor:
    return torch.cat([column.detach().to("cpu", torch.float64) for column in columns], dim=1)


def _area_and_crowd(target: Mapping[str, Tensor]) -> Tensor:
    x1, y1, x2, y2 = target["boxes"].double().unbind(dim=1)
    area = target["area"].double() if "area" in target else (x2 - x1) * (y2 - y1)
    crowd = target["iscrowd"].double() if "iscrowd" in target else torch.zeros_like(area)
    return torch.stack([area, crowd], dim=1)


def _keys(ids: Sequence[int], images: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Return (image id, label) of every box."""
    keys = [torch.zeros(0, 2, dtype=torch.int64)]
    for number, image in zip(ids, images, strict=True):
        labels = image["labels"].detach().to("cpu", torch.int64)
        keys.append(torch.stack([torch.full_like(labels, number), labels], dim=1))
    return torch.cat(keys)
