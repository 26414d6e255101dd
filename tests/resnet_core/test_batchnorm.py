"""BatchNorm's exact statistics against those of all images at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resnet_core.augment import normalize
from resnet_core.batchnorm import reestimate_batchnorm, synchronize
from resnet_core.config import AugmentConfig
from resnet_core.step import StepConfig

CONFIG = StepConfig(channels_last=False)


def stacked() -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def as_input(images: torch.Tensor) -> torch.Tensor:
    augment = AugmentConfig()
    return normalize(images, augment.mean, augment.std)


@pytest.fixture
def images(make_batch) -> torch.Tensor:
    return make_batch(24).images_BHWC


def moments(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance of each channel, float64."""
    flat = values.double().transpose(0, 1).flatten(1)
    return flat.mean(1), flat.var(1)


def test_one_batch_gives_its_own_statistics_in_every_layer(images) -> None:
    model = stacked()
    reestimate_batchnorm(model, [images], CONFIG)
    reference = stacked().train()
    reference.apply(lambda layer: setattr(layer, "momentum", 1.0))
    reference(as_input(images))
    for place in (1, 4):
        torch.testing.assert_close(model[place].running_mean, reference[place].running_mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model[place].running_var, reference[place].running_var, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sizes", [[24], [12, 12], [9, 1, 14]])
def test_batches_are_pooled_exactly_however_they_are_cut(images, sizes: list[int]) -> None:
    """Where nothing but a convolution lies before the layer, the cut cannot matter at all."""
    model = stacked()
    mean, var = moments(model[0](as_input(images)).detach())
    reestimate_batchnorm(model, images.split(sizes), CONFIG)
    torch.testing.assert_close(model[1].running_mean.double(), mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model[1].running_var.double(), var, atol=1e-6, rtol=1e-5)


def test_each_batch_passes_with_its_own_statistics_as_in_training(images) -> None:
    model, reference = stacked(), stacked().train()
    batches = images.split(12)
    inside = torch.cat([reference[:4](as_input(batch)) for batch in batches]).detach()
    mean, var = moments(inside)
    reestimate_batchnorm(model, batches, CONFIG)
    torch.testing.assert_close(model[4].running_mean.double(), mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model[4].running_var.double(), var, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_else_changes(images, training: bool) -> None:
    model = stacked().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reestimate_batchnorm(model, [images], CONFIG)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{place}.running_{kind}" for place in (1, 4) for kind in ("mean", "var")}
    assert model.training is training and model[1].training is training
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()(as_input(images))
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in model.state_dict().items())


def test_no_images_are_an_error() -> None:
    with pytest.raises(ValueError, match="no worker has an image"):
        reestimate_batchnorm(stacked(), [], CONFIG)


def test_synchronizing_is_refused_where_torch_cannot_and_needless_alone() -> None:
    model = stacked()
    assert synchronize(model, world_size=1) is model
    with pytest.raises(ValueError, match=r"^optim\.sync_batch_norm must be false on CPU workers"):
        synchronize(model, world_size=2)
