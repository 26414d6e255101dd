"""The device's crops are the host's: the same draws, the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipelines.config.crop import CropConfig
from pipelines.data.images.crop_boxes import eval_window, train_window
from pipelines.data.images.pillow import eval_crop, train_crop
from pipelines.data.order.rng import Purpose, generator
from resnet_core.crop_resize import WINDOW, resample
from tests.pipelines.data.conftest import picture

SIZES = [(500, 375), (96, 96), (375, 500), (40, 33), (30, 90)]


def compare(images, windows, expected, size):
    """Largest and mean difference, in levels."""
    differences = []
    for image, window, one in zip(images, windows, expected, strict=True):
        batch = torch.from_numpy(np.array(image))[None]
        found = resample(batch, torch.from_numpy(window)[None], size)[0].numpy().astype(int)
        differences.append(np.abs(found - one.astype(int)))
    values = np.concatenate([each.ravel() for each in differences])
    return values.max(), values.mean()


def noisy(width, height, seed):
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    return np.clip(np.asarray(picture(width, height, seed)).astype(int) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["random_resized", "scale_jitter", "pad", "center"])
@pytest.mark.parametrize("size", [32, 48])
def test_training_crops_equal_pillow_s(kind, size):
    from PIL import Image

    torch.set_num_threads(1)
    crop = CropConfig(image_size=size, train_crop=kind, eval_resize=40, jitter_min=36, jitter_max=80)
    images = [Image.fromarray(noisy(*each, seed)) for seed, each in enumerate(SIZES * 4)]
    streams = [[generator(7, Purpose.CROP, 0, index) for index in range(len(images))] for _ in range(2)]
    expected = [train_crop(image, crop, rng) for image, rng in zip(images, streams[0], strict=True)]
    windows = [train_window(*image.size, crop, rng) for image, rng in zip(images, streams[1], strict=True)]
    assert {window.shape for window in windows} == {WINDOW}
    most, mean = compare(images, windows, expected, size)
    assert most <= 1 and mean < 0.2
    draws = [[rng.random() for rng in each] for each in streams]
    assert draws[0] == draws[1]  # nothing more and nothing less was drawn


@pytest.mark.parametrize("size", [24, 40, 56])
def test_evaluation_crops_equal_pillow_s(size):
    from PIL import Image

    torch.set_num_threads(1)
    crop = CropConfig(image_size=size, eval_resize=44)
    images = [Image.fromarray(noisy(*each, seed)) for seed, each in enumerate(SIZES)]
    windows = [eval_window(*image.size, crop) for image in images]
    most, mean = compare(images, windows, [eval_crop(image, crop) for image in images], size)
    assert most <= 1 and mean < 0.2
