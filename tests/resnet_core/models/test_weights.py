"""Weights from and for other libraries: names, new heads, and what is said when tensors do not fit."""

from __future__ import annotations

import pytest
import torch

from resnet_core.models import from_timm, from_torchvision, load_weights, to_timm, to_torchvision
from tests.resnet_core.models.conftest import build, randomize_norms, small


def test_weights_come_back_as_they_were() -> None:
    saved = small(attention="se")
    randomize_norms(saved)
    loaded = small(attention="se").double()
    load_weights(loaded, saved.state_dict())
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(loaded.eval()(images.double()).float(), saved.eval()(images))


def test_a_new_head_keeps_everything_else() -> None:
    saved, tuned = small(num_classes=7), small(num_classes=4)
    with torch.no_grad():
        saved.conv1.weight.fill_(0.5)
    head = tuned.fc.weight.detach().clone()
    load_weights(tuned, saved.state_dict(), new_head=True)
    assert torch.equal(tuned.fc.weight, head)
    assert torch.equal(tuned.conv1.weight, saved.conv1.weight)
    same = small(num_classes=7)
    load_weights(same, saved.state_dict(), new_head=True)
    assert not torch.equal(same.fc.weight, torch.zeros_like(same.fc.weight))


def test_tensors_that_do_not_fit_are_named_and_nothing_is_changed() -> None:
    model = small(num_classes=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = dict(small(num_classes=4).state_dict())
    tensors["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    del tensors["layer1.0.bn2.bias"]
    tensors["layer9.0.conv1.weight"] = torch.zeros(1)
    message = (
        r"^1 missing tensor: layer1\.0\.bn2\.bias; 1 unexpected tensor: layer9\.0\.conv1\.weight; "
        r"3 mismatched tensors: conv1\.weight \(\[16, 1, 3, 3\], not \[16, 3, 3, 3\]\), "
        r"fc\.weight \(\[4, 32\], not \[3, 32\]\), fc\.bias \(\[4\], not \[3\]\)$"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(model, tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_many_faults_are_counted() -> None:
    with pytest.raises(ValueError, match=r"^102 missing tensors: .* and 97 more$"):
        load_weights(build("resnet18"), {})


def test_counts_of_batches_may_be_missing() -> None:
    model = small()
    old = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_weights(model, old)


def test_names_of_attention() -> None:
    ours = set(small(attention="cbam").state_dict())
    theirs = to_timm({name: torch.zeros(1) for name in ours})
    assert "layer1.0.se.channel.fc1.weight" in theirs
    assert "layer1.0.se.spatial.conv.conv.weight" in theirs
    assert "layer1.0.se.spatial.conv.bn.running_mean" in theirs
    assert set(from_timm(theirs)) == ours


def test_names_of_a_deep_pre_activation_network() -> None:
    with torch.device("meta"):
        ours = build("resnet50d", block_order="pre").state_dict()
    theirs = to_timm(ours)
    assert {"stem.conv3.weight", "stages.0.blocks.0.downsample.conv.weight", "norm.bias"} <= set(theirs)
    assert theirs["head.fc.weight"].shape == (1000, 2048, 1, 1)
    assert {name: tensor.shape for name, tensor in from_timm(theirs).items()} == {
        name: tensor.shape for name, tensor in ours.items()
    }


def test_what_torchvision_has_no_place_for_is_named() -> None:
    tensors = small(attention="eca").state_dict()
    with pytest.raises(ValueError, match=r"^4 non-torchvision tensors: layer1\.0\.attention\.conv\.weight, "):
        to_torchvision(tensors)
    with pytest.raises(ValueError, match=r"^1 non-torchvision tensor: classifier\.weight"):
        from_torchvision({"classifier.weight": torch.zeros(1)})
