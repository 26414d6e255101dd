"""Random objects and detections near them: scores tie, some classes have no object, some images no box."""

from __future__ import annotations

import torch
from torch import Tensor

CLASSES = 4  # the background is one
SIDE = 200.0  # objects are small, medium and large
Image = dict[str, Tensor]


def random_images(seed: int, count: int) -> tuple[list[int], list[Image], list[Image]]:
    """Return ids, predictions and targets."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, size: int) -> Tensor:
        return torch.randint(low, high, (size,), generator=generator)

    def boxes(size: int) -> Tensor:
        corners = torch.rand(size, 2, generator=generator) * SIDE * 0.6
        sides = 4 + torch.rand(size, 2, generator=generator) ** 2 * SIDE
        return torch.cat([corners, corners + sides], dim=1)

    ids, predictions, targets = torch.randperm(3 * count, generator=generator)[:count].tolist(), [], []
    for _ in ids:
        objects, strays = int(integers(0, 6, 1)), int(integers(0, 5, 1))
        truth, labels = boxes(objects), integers(1, CLASSES, objects)
        seen = integers(0, max(objects, 1), 2 * objects)  # some twice, some not at all
        near = truth[seen] + torch.randn(len(seen), 4, generator=generator) * 6
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        wrong = torch.rand(len(seen), generator=generator) < 0.2
        found = torch.where(wrong, integers(1, CLASSES, len(seen)), labels[seen])
        predictions.append(
            {
                "boxes": torch.cat([near, boxes(strays)]),
                "labels": torch.cat([found, integers(1, CLASSES, strays)]),
                "scores": integers(1, 20, len(seen) + strays) / 20,
            }
        )
        targets.append({"boxes": truth, "labels": labels})
        if integers(0, 2, 1):
            targets[-1]["iscrowd"] = (torch.rand(objects, generator=generator) < 0.2).long()
        if integers(0, 2, 1):
            targets[-1]["area"] = torch.rand(objects, generator=generator) * 12000
    return ids, predictions, targets
