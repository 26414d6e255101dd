"""FCN and DeepLabV3 against torchvision's own models: the same tensors, losses and gradients of one step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_core import resnet20, resnet50
from resnet_core.models import build_model
from resnet_core.segmentation import PixelLossConfig, deeplabv3, fcn, pixel_loss, sum_pixel_loss
from tests.resnet_core.models.conftest import randomize_norms

CLASSES = 5
BUILDERS = {"fcn": (fcn, torchvision.models.segmentation.fcn_resnet50),
            "deeplabv3": (deeplabv3, torchvision.models.segmentation.deeplabv3_resnet50)}  # fmt: skip


def reference_loss(logits: dict[str, Tensor], target: Tensor) -> Tensor:
    """`criterion` of torchvision's references/segmentation/train.py."""
    losses = {name: nn.functional.cross_entropy(x, target, ignore_index=255) for name, x in logits.items()}
    return losses["out"] + 0.5 * losses["aux"]


def images_and_masks(side: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    masks = torch.randint(0, CLASSES, (2, side, side), generator=generator)
    masks[:, :6] = 255
    return torch.randn(2, 3, side, side, generator=generator), masks


@pytest.mark.parametrize("kind", BUILDERS)
def test_loss_and_gradients_of_a_step(kind: str) -> None:
    build, theirs_of = BUILDERS[kind]
    torch.manual_seed(0)
    theirs = theirs_of(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
    randomize_norms(theirs)
    ours = build(resnet50(output_stride=8), CLASSES)
    ours.load_state_dict(theirs.state_dict())
    images, masks = images_and_masks()
    losses = []
    for model, loss_of in ((ours, pixel_loss), (theirs, reference_loss)):
        torch.manual_seed(7)  # of the heads' dropout
        loss = loss_of(model.train()(images), masks)
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    gradients = dict(theirs.named_parameters())
    assert max(float(each.grad.abs().max()) for each in gradients.values()) > 0.01
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-5, atol=1e-5, msg=name)
    with torch.no_grad():
        mine, reference = (model.eval()(images) for model in (ours, theirs))
    assert set(mine) == {"out"}
    torch.testing.assert_close(mine["out"], reference["out"], rtol=0, atol=1e-4)


def test_every_kind_of_network_carries_both_heads() -> None:
    """A pre-activation network, one of three stages, and one without auxiliary head."""
    images, masks = images_and_masks(32)
    for model in (
        fcn(build_model("resnet18", block_order="pre", output_stride=16, depths=(1, 1, 1, 1)), CLASSES),
        fcn(resnet20(), CLASSES),
        deeplabv3(resnet20(), CLASSES, auxiliary=False),
    ):
        pixel_loss(model(images), masks).backward()
        assert [name for name, each in model.named_parameters() if each.grad is None] == []
        assert model(images)["out"].shape == (2, CLASSES, 32, 32)


@pytest.mark.parametrize(("output_stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])])
def test_atrous_rates_are_the_papers(output_stride: Any, rates: list[int]) -> None:
    with torch.device("meta"):
        model = deeplabv3(build_model("resnet18", output_stride=output_stride), CLASSES)
    dilations = [
        module.dilation[0] for module in model.get_submodule("classifier.0").modules() if isinstance(module, nn.Conv2d)
    ]
    assert [rate for rate in dilations if rate > 1] == rates


def test_the_loss_does_not_depend_on_the_split_of_a_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(CLASSES, generator=generator) + 0.1
    logits = {name: torch.randn(5, CLASSES, 6, 4, generator=generator) for name in ("out", "aux")}
    masks = torch.randint(0, CLASSES, (5, 6, 4), generator=generator).to(torch.uint8)
    masks[0], masks[3, 0] = 9, 9
    config = PixelLossConfig(ignore_index=9, auxiliary_weight=0.3, class_weights_K=weights)
    whole = pixel_loss(logits, masks, config)
    parts = [
        sum_pixel_loss({name: each[rows] for name, each in logits.items()}, masks[rows], config)
        for rows in (slice(0, 1), slice(1, 3), slice(3, 5))
    ]
    loss, weight = (torch.stack(column).sum() for column in zip(*parts, strict=True))
    expected = sum(
        share * nn.functional.cross_entropy(logits[name], masks.long(), weights, ignore_index=9)
        for name, share in (("out", 1.0), ("aux", 0.3))
    )
    torch.testing.assert_close(loss / weight, whole)
    torch.testing.assert_close(whole, expected)
    assert float(pixel_loss(logits, torch.full_like(masks, 9), config)) == 0.0
