"""Colour jitter against torchvision's functions; lighting against its formula."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from resnet_core.augment import step_generator
from resnet_core.augment.photometric import jitter_color_, shift_lighting_

CPU = torch.device("cpu")


def generator(step: int = 0) -> torch.Generator:
    return step_generator(0, step, 0, CPU)


def images(rows: int = 16) -> torch.Tensor:
    draws = torch.randint(0, 256, (rows, 7, 5, 3), generator=torch.Generator().manual_seed(0))
    return draws.float()


@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_jitter_is_torchvisions_brightness_contrast_saturation_in_that_order(strength: float) -> None:
    out = images()
    jitter_color_(out, strength, generator())
    factors = 1 + strength * (2 * torch.rand(3, 16, generator=generator()) - 1)
    for row, image in enumerate(images().permute(0, 3, 1, 2) / 255):
        brightness, contrast, saturation = factors[:, row].tolist()
        image = F.adjust_contrast(F.adjust_brightness(image, brightness), contrast)
        expected = 255 * F.adjust_saturation(image, saturation).permute(1, 2, 0)
        torch.testing.assert_close(out[row], expected, atol=2e-3, rtol=0)
    assert float(factors.min()) >= 1 - strength and float(factors.max()) <= 1 + strength


def test_lighting_is_one_shift_per_image_along_the_components() -> None:
    out = images(4000)
    shift_lighting_(out, 0.1, generator())
    shift = (out - images(4000)) / 255
    assert float((shift - shift[:, :1, :1]).abs().max()) < 1e-6
    shift = shift[:, 0, 0].double()
    # the covariance of the shifts is that of the colours they follow, times the deviation's square
    vectors = torch.tensor(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], dtype=torch.float64
    )
    expected = vectors @ torch.diag(torch.tensor([0.2175, 0.0188, 0.0045], dtype=torch.float64) ** 2) @ vectors.T
    torch.testing.assert_close(shift.T @ shift / 4000, 0.01 * expected, atol=2e-5, rtol=0.1)
    # and each shift is its own image's draw
    alphas = 0.1 * torch.randn(4000, 3, generator=generator()).double()
    by_hand = alphas @ (torch.tensor([0.2175, 0.0188, 0.0045], dtype=torch.float64)[:, None] * vectors.T)
    torch.testing.assert_close(shift, by_hand, atol=1e-6, rtol=0)


@pytest.mark.parametrize("change", [lambda x, g: jitter_color_(x, 0.4, g), lambda x, g: shift_lighting_(x, 0.1, g)])
def test_a_function_of_the_generators_state(change) -> None:
    results = []
    for step in (3, 3, 4):
        batch = images()
        change(batch, generator(step))
        results.append(batch)
    first, again, other = results
    assert torch.equal(first, again) and not torch.equal(first, other)
