"""What an evaluation leaves in a checkpoint, and the plots that are made of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from pipelines.training.checkpoint_writer import details
from pipelines.training.result import _draw
from resnet_core.evaluation import EvalSums, Mistakes
from tests.pipelines.conftest import Coloured

if TYPE_CHECKING:
    from infra.tracking.tracker import Tracker

CPU = torch.device("cpu")
SCORED = 256


def stored(classes: int) -> bytes:
    """`scored.safetensors` of an evaluation of 256 images, every second one of which is predicted right."""
    labels = torch.arange(SCORED) * (classes - 1) // SCORED
    logits = torch.zeros(SCORED, classes)
    logits[torch.arange(SCORED), labels + torch.arange(SCORED) % 2] = 1.0
    sums = EvalSums(classes, CPU)
    sums.update(logits, labels)
    mistakes = dataclasses.replace(
        Mistakes.empty(25, 8, 8, CPU), probability_N=torch.ones(25), predicted_N=torch.ones(25, dtype=torch.int64)
    )
    return save(details(sums, mistakes))


class Drawn:
    """A tracker that keeps the names of what it is given."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def figure(self, name: str, figure: Any) -> None:
        self.names.append(name)


@pytest.mark.parametrize("classes", [3, 1024, 1025, 11_821, 21_841])
def test_what_an_evaluation_leaves_does_not_grow_with_the_square_of_the_classes(
    classes: int, colours: Coloured
) -> None:
    """Up to 1,024 classes it is what checkpoints of earlier versions hold."""
    data = stored(classes)
    assert len(data) < 5_000_000
    scored = load(data)
    if classes <= 1024:
        assert scored["confusion"].shape == (classes, classes) and scored["confusion"].dtype == np.int32
        assert (int(scored["confusion"].sum()), int(scored["confusion"].trace())) == (SCORED, SCORED // 2)
    else:
        pairs = scored["pairs"]
        assert pairs[:, 2].sum() == SCORED and pairs[pairs[:, 0] == pairs[:, 1], 2].sum() == SCORED // 2
    drawn = Drawn()
    manifest = dataclasses.replace(colours.manifest, class_names=tuple(f"class {k}" for k in range(classes)))
    _draw(cast("Tracker", drawn), [], scored, manifest, 1.0)
    assert drawn.names == ["plots/classes.png", "plots/confusion.png", "plots/mistakes.png"]
