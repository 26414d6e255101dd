"""The same tensors in our network and in torchvision's or timm's: outputs, gradients and one SGD step agree in float64.

Norms are at random, so that no zero or unit scale hides a difference. `pytest -s` prints the largest differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_core.models import from_timm, from_torchvision, load_weights, to_timm, to_torchvision
from tests.resnet_core.models.conftest import build, randomize_norms

LIMIT = 1e-10
CLASSES = 5
SIDE = 40  # the last stage sees 2x2 pixels: enough for its norms, and quick
TORCHVISION = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2"]
TIMM: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("resnet50d", {}, "resnet50d", {}),
    ("seresnet50", {}, "seresnet50", {}),
    ("ecaresnet50d", {}, "ecaresnet50d", {}),
    ("resnetrs50", {}, "resnetrs50", {}),
    ("resnet18", {"attention": "cbam", "activation": "silu"}, "resnet18", {"act_layer": "silu", "cbam": True}),
    ("resnet50", {"block_order": "pre"}, "resnetv2_50", {}),
    ("resnet50d", {"block_order": "pre"}, "resnetv2_50d", {}),
    ("resnet18", {"block_order": "pre"}, "resnetv2_18", {}),
]


def from_library(model: nn.Module) -> nn.Module:
    randomize_norms(model)
    return model.double().train()


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Of one step of SGD in training mode; the second output is that of evaluation mode after it."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    tensors: dict[str, Tensor]


def one_step(model: nn.Module, images: Tensor, labels: Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    logits = model(images)
    F.cross_entropy(logits, labels).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    optimizer.step()
    with torch.no_grad():
        outputs = {"training": logits.detach(), "evaluation": model.eval()(images)}
    return Step(outputs=outputs, gradients=gradients, tensors=model.state_dict())


def largest_difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Over all tensors; of those that are larger than one, as a share of the largest number."""
    assert ours.keys() == theirs.keys()
    return max(
        float((tensor.double() - theirs[name].double()).abs().max() / max(1.0, float(theirs[name].abs().max())))
        for name, tensor in ours.items()
    )


def compare(ours: nn.Module, theirs: nn.Module, rename: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64, generator=generator)
    labels = torch.tensor([1, 4])
    mine, other = one_step(ours, images, labels), one_step(theirs, images, labels)
    largest = {
        "outputs": largest_difference(mine.outputs, other.outputs),
        "gradients": largest_difference(mine.gradients, rename(other.gradients)),
        "tensors after one step": largest_difference(mine.tensors, rename(other.tensors)),
    }
    print({kind: f"{value:.1e}" for kind, value in largest.items()})  # noqa: T201 - the figures are worth reading
    assert max(largest.values()) < LIMIT, largest


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    torch.manual_seed(0)
    theirs = from_library(getattr(torchvision.models, name)(num_classes=CLASSES))
    ours = build(name, num_classes=CLASSES).double().train()
    load_weights(ours, from_torchvision(theirs.state_dict()))
    assert to_torchvision(ours.state_dict()).keys() == theirs.state_dict().keys()
    compare(ours, theirs, from_torchvision)


@pytest.mark.parametrize(("name", "options", "timm_name", "timm_options"), TIMM, ids=[f"{row[2]}" for row in TIMM])
def test_timm(name: str, options: dict[str, Any], timm_name: str, timm_options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    arguments = {key: value for key, value in timm_options.items() if key != "cbam"}
    if timm_options.get("cbam"):
        arguments["block_args"] = {"attn_layer": "cbam"}
    theirs = from_library(timm.create_model(timm_name, num_classes=CLASSES, **arguments))
    ours = build(name, num_classes=CLASSES, **options).double().train()
    load_weights(ours, from_timm(theirs.state_dict()))
    back = to_timm(ours.state_dict())
    assert {key: tensor.shape for key, tensor in back.items()} == {
        key: tensor.shape for key, tensor in theirs.state_dict().items()
    }
    compare(ours, theirs, from_timm)
