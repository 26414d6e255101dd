from __future__ import annotations

import pytest
import torch
from torch import Tensor

from resnet_core.config import ModelConfig
from resnet_core.evaluation.views import Dense, five_crops, mean_probabilities, mirrored, ten_crops
from resnet_core.models import ResNet, build_model

RESNET20 = ModelConfig(name="resnet20", num_classes=5)
PRE_ACTIVATION = ModelConfig(name="resnet20", num_classes=5, block_order="pre")
RESNET18 = ModelConfig(name="resnet18", num_classes=5)


def settled(config: ModelConfig = RESNET20) -> ResNet:
    """A network whose BatchNorms have seen images."""
    torch.manual_seed(1)
    model = build_model(config)
    for _ in range(3):
        model(torch.randn(8, 3, 32, 32))
    return model.eval()


def test_the_five_crops_of_a_numbered_image() -> None:
    image = torch.arange(20).view(1, 4, 5, 1)
    crops = [crop.flatten().tolist() for crop in five_crops(image, 2)]
    corners = [[0, 1, 5, 6], [3, 4, 8, 9], [10, 11, 15, 16], [13, 14, 18, 19]]
    assert crops == [*corners, [7, 8, 12, 13]]  # the centre begins in row 1 and, of 1.5, in column 2, as in torchvision


def test_ten_crops_are_five_and_their_mirror_images() -> None:
    images = torch.randint(0, 256, (2, 9, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crops = ten_crops(images, 4)
    assert [tuple(crop.shape) for crop in crops] == [(2, 4, 4, 3)] * 10
    for crop, mirror in zip(crops[::2], crops[1::2], strict=True):
        assert torch.equal(mirror[:, :, 0], crop[:, :, 3])
    assert all(torch.equal(*pair) for pair in zip(crops[::2], five_crops(images, 4), strict=True))


def test_images_smaller_than_the_crop_have_none() -> None:
    with pytest.raises(ValueError, match="size: images of 9x3 pixels have no crops of 4x4"):
        five_crops(torch.zeros(1, 9, 3, 3), 4)


def test_probabilities_are_averaged_not_logits() -> None:
    first, second = torch.tensor([[0.0, 0.0]]), torch.tensor([[9.0, 0.0]])
    mean = mean_probabilities(logits.softmax(1) for logits in (first, second))
    assert mean.tolist()[0] == pytest.approx([(0.5 + 0.999877) / 2, (0.5 + 0.000123) / 2], abs=1e-6)


def test_mirrored_images_come_second() -> None:
    image = torch.arange(6).view(1, 2, 3, 1)
    assert [view.flatten().tolist() for view in mirrored(image)] == [[0, 1, 2, 3, 4, 5], [2, 1, 0, 5, 4, 3]]


def by_hand(model: ResNet, image_1CHW: Tensor, window: int, *, multi_label: bool = False) -> Tensor:
    """The probability at every position, one window of the feature map after the other."""
    [features] = list(model.features(image_1CHW).values())[-1]
    height, width = features.shape[1] - window + 1, features.shape[2] - window + 1
    positions = [features[:, y : y + window, x : x + window] for y in range(height) for x in range(width)]
    logits = torch.stack([model.fc(each.mean(dim=(1, 2))) for each in positions])
    return (logits.sigmoid() if multi_label else logits.softmax(1)).mean(dim=0)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width", "positions"), [(32, 32, 1), (40, 32, 3), (45, 64, 5 * 9)])
def test_the_dense_form_scores_every_position(height: int, width: int, positions: int) -> None:
    model = settled()
    images = torch.randn(3, 3, height, width)
    dense = Dense(model, 32)
    assert dense.window == (8, 8)
    assert (-(-height // 4) - 7) * (-(-width // 4) - 7) == positions
    expected = torch.stack([by_hand(model, image[None], 8) for image in images])
    torch.testing.assert_close(dense(images).softmax(1), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(dense(images).exp().sum(1), torch.ones(3))


@torch.no_grad()
def test_the_dense_form_of_a_multi_label_network_averages_its_sigmoids() -> None:
    model = settled()
    images = torch.randn(3, 3, 45, 64)
    expected = torch.stack([by_hand(model, image[None], 8, multi_label=True) for image in images])
    dense = Dense(model, 32, multi_label=True)
    torch.testing.assert_close(dense(images).sigmoid(), expected, atol=1e-6, rtol=1e-5)
    far = dense(1e6 * images)
    assert far.isfinite().all()  # where a sigmoid is 0 or 1


@torch.no_grad()
@pytest.mark.parametrize("config", [RESNET20, PRE_ACTIVATION, RESNET18])
def test_at_the_crop_the_dense_form_is_the_model(config: ModelConfig) -> None:
    model = settled(config)
    images = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(Dense(model, 64)(images).softmax(1), model(images).softmax(1))


@torch.no_grad()
def test_where_the_map_is_smaller_than_the_window_it_is_the_window() -> None:
    model = settled()
    images = torch.randn(2, 3, 20, 32)
    torch.testing.assert_close(Dense(model, 32)(images).softmax(1), model(images).softmax(1))


@torch.no_grad()
def test_no_image_knows_of_its_batch_mates() -> None:
    model = settled()
    images = torch.randn(5, 3, 40, 36)
    together = Dense(model, 32)(images)
    alone = torch.cat([Dense(model, 32)(image[None]) for image in images])
    torch.testing.assert_close(together, alone)


def test_finding_the_window_leaves_the_model_as_it_was() -> None:
    model = settled().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Dense(model, 32)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.avgpool._forward_pre_hooks
