"""The detectors against torchvision's own models: the same tensors, losses and gradients of one step, detections."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from resnet_core import build_model, resnet18, resnet20
from resnet_core.detection import PyramidBackbone, faster_rcnn, fcos, freeze_norms, retinanet
from tests.resnet_core.models.conftest import randomize_norms

CLASSES = 4
SIDE = 96
SIZES = {"min_size": SIDE, "max_size": SIDE}
LEVELS = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
QUICK = {"rpn_pre_nms_top_n_train": 200, "rpn_post_nms_top_n_train": 60, "box_batch_size_per_image": 32,
         "rpn_post_nms_top_n_test": 40, "box_score_thresh": 0.0}  # fmt: skip
KINDS: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
    "faster_rcnn": (faster_rcnn, FasterRCNN, {}, {**SIZES, **QUICK}),
    "retinanet": (retinanet, RetinaNet, LEVELS, {**SIZES, "score_thresh": 0.0}),
    "fcos": (fcos, FCOS, LEVELS, {**SIZES, "score_thresh": 0.0}),
}


def canvases() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images; one has no object."""
    generator = torch.Generator().manual_seed(5)
    images = [torch.rand(3, SIDE, SIDE, generator=generator) for _ in range(2)]
    boxes = torch.tensor([[4.0, 5, 60, 50], [30, 20, 90, 92], [1, 1, 33, 33]])
    return images, [
        {"boxes": boxes, "labels": torch.tensor([1, 3, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]


def theirs_and_ours(kind: str, trainable: int, frozen_norms: bool) -> tuple[Any, Any]:
    build, detector, levels, options = KINDS[kind]
    torch.manual_seed(0)
    norm = FrozenBatchNorm2d if frozen_norms else nn.BatchNorm2d
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=norm, trainable_layers=trainable, **levels
    )
    theirs = detector(backbone, num_classes=CLASSES, **options)
    for module in theirs.modules():
        if isinstance(module, FrozenBatchNorm2d):  # a random network of constant norms would explode
            module.running_var.fill_(2.0)
    ours = build(resnet18(), CLASSES, trainable_stages=trainable, frozen_norms=frozen_norms, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("trainable", "frozen_norms"), [(3, True), (5, False)], ids=["pretrained", "scratch"])
def test_losses_and_gradients_of_a_step(kind: str, trainable: int, frozen_norms: bool) -> None:
    theirs, ours = theirs_and_ours(kind, trainable, frozen_norms)
    images, targets = canvases()
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(7)  # of the samplers of anchors and proposals
        found = model.train()(images, targets)
        sum(found.values()).backward()
        losses.append({name: loss.detach() for name, loss in found.items()})
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        assert float(loss) == pytest.approx(float(losses[1][name]), rel=1e-5, abs=1e-5), name
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if gradients[name] is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-5, msg=name)
    assert max(float(gradient.abs().max()) for gradient in gradients.values() if gradient is not None) > 0.01
    frozen = {name for name, gradient in gradients.items() if gradient is None}
    assert bool(frozen) == (trainable < 5) and all(".conv1." in name or "layer1" in name for name in frozen)


def test_detections_are_torchvisions() -> None:
    for kind in KINDS:
        theirs, ours = theirs_and_ours(kind, 3, True)
        with torch.no_grad():
            mine, reference = (model.eval()(canvases()[0]) for model in (ours, theirs))
        for found, expected in zip(mine, reference, strict=True):
            assert found.keys() == expected.keys()
            assert torch.equal(found["labels"], expected["labels"])
            torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)
            assert len(found["boxes"])


@pytest.mark.parametrize("trainable", range(6))
def test_stages_train_as_in_torchvision(trainable: int) -> None:
    theirs = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=trainable)
    ours = PyramidBackbone(resnet18(), theirs.fpn.extra_blocks, trainable_stages=trainable)
    mine, reference = (
        {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
        for backbone in (ours, theirs)
    )
    assert mine == reference


def test_frozen_norms_keep_the_networks_outputs() -> None:
    network = build_model("resnet18", block_order="pre", depths=(1, 1, 1, 1), attention="cbam")
    randomize_norms(network)
    images = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        before = network.eval().features(images)["C5"]
        freeze_norms(network)
        torch.testing.assert_close(network.train().features(images)["C5"], before)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_a_pre_activation_network_trains_in_every_part() -> None:
    network = build_model("resnet18", block_order="pre", depths=(1, 1, 1, 1))
    model = fcos(network, CLASSES, trainable_stages=5, frozen_norms=False, pyramid_channels=32, **SIZES)
    sum(model(*canvases()).values()).backward()
    assert [name for name, each in model.named_parameters() if each.grad is None] == []


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a network of 4 stages, such as resnet50: got 3"):
        retinanet(resnet20(), CLASSES)
    with pytest.raises(ValueError, match=r"trainable_stages must be in \[0, 5\]: got 6"):
        faster_rcnn(resnet18(), CLASSES, trainable_stages=6)
