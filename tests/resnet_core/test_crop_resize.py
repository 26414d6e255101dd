"""Batched crop and resize against torchvision's, image by image."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from resnet_core.crop_resize import resample


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def noise(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def cropped(left, top, width, height):
    """The window that is cropped before it is resized."""
    return [[left, width, left, left + width], [top, height, top, top + height]]


BOXES = [(0, 0, 61, 47), (3, 5, 40, 30), (10, 2, 9, 44), (60, 46, 1, 1), (20, 7, 32, 32), (1, 1, 2, 45)]


def resized_crops(images, size, kind):
    """torchvision's, of each image at its box."""
    mode = InterpolationMode(kind)
    crops = [
        F.resized_crop(image.permute(2, 0, 1), top, left, height, width, [size, size], mode, antialias=True)
        for image, (left, top, width, height) in zip(images, BOXES, strict=True)
    ]
    return torch.stack(crops).permute(0, 2, 3, 1)


@pytest.mark.parametrize(("kind", "levels"), [("bilinear", 1), ("bicubic", 2)])
@pytest.mark.parametrize("size", [8, 24, 32, 96])
def test_equals_torchvision_with_boxes_of_their_own(size, kind, levels):
    images = noise(len(BOXES), 47, 61, 3)
    windows = torch.tensor([cropped(*box) for box in BOXES], dtype=torch.float64)
    expected = resized_crops(images, size, kind)
    found = resample(images, windows, size, kind)
    assert found.dtype == torch.uint8 and found.shape == (len(BOXES), size, size, 3)
    assert (found.int() - expected.int()).abs().max() <= levels
    in_float = resized_crops(images.float(), size, kind)
    torch.testing.assert_close(resample(images.float(), windows, size, kind), in_float, rtol=0, atol=2e-3)


def test_a_window_of_the_image_s_own_pixels_is_the_image():
    images = noise(2, 16, 16, 1)
    window = torch.tensor([cropped(0, 0, 16, 16), cropped(0, 0, 16, 16)], dtype=torch.float64)
    assert resample(images, window, 16).equal(images)


def test_what_lies_outside_the_image_is_zero():
    """A crop of 6 x 6 that begins two pixels left of the image and one above it."""
    images = noise(1, 8, 8, 3) | 1
    window = torch.tensor([[[-2, 6, 0, 8], [-1, 6, 0, 8]]], dtype=torch.float64)
    expected = torch.zeros(1, 6, 6, 3, dtype=torch.uint8)
    expected[:, 1:, 2:] = images[:, :5, :4]
    assert resample(images, window, 6).equal(expected)


def test_images_may_lie_in_larger_arrays():
    small = noise(1, 10, 12, 3)
    padded = torch.full((1, 20, 30, 3), 77, dtype=torch.uint8)
    padded[:, :10, :12] = small
    window = torch.tensor([cropped(1, 0, 11, 10)], dtype=torch.float64)
    assert resample(padded, window, 7).equal(resample(small, window, 7))
