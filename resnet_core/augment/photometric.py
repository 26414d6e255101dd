"""Random changes of brightness and colour, drawn for each image.

Shapes: B images, H and W pixels, C = 3 channels, float32 in [0, 255]. Each public function works in place.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, with torchvision's digits
# Principal components of ImageNet's colours in [0, 1], one per row. AlexNet's paper does not print them; these are
# from fb.resnet.torch (datasets/imagenet.lua) and have been in general use since.
_COMPONENTS = (
    (-0.5675, -0.5808, -0.5836),
    (0.7192, -0.0045, -0.6948),
    (0.4009, -0.8140, 0.4203),
)
_EIGENVALUES = (0.2175, 0.0188, 0.0045)


def jitter_color_(images_BHWC: Tensor, strength: float, generator: torch.Generator) -> None:
    """Multiply each image's brightness, contrast and saturation by random factors, uniform in [1 - x, 1 + x].

    x is `strength`. The formulas are those of torchvision's ColorJitter, on floats. The order is fixed; torchvision's
    is random.
    """
    shape, device = (3, len(images_BHWC), 1, 1, 1), images_BHWC.device
    draws = torch.rand(shape, generator=generator, device=device)
    brightness, contrast, saturation = (1 + strength * (2 * draws - 1)).unbind()
    images_BHWC.mul_(brightness).clamp_(0, 255)
    mean_grey = _grey(images_BHWC).mean(dim=(1, 2), keepdim=True)
    _blend_(images_BHWC, mean_grey, contrast)
    _blend_(images_BHWC, _grey(images_BHWC), saturation)


def shift_lighting_(images_BHWC: Tensor, deviation: float, generator: torch.Generator) -> None:
    """Add noise along ImageNet's principal components of colour; one draw per image, the same for all its pixels.

    Source: Krizhevsky et al. 2012, section 4.1, with a deviation of 0.1.
    """
    device = images_BHWC.device
    draws_B3 = torch.randn(len(images_BHWC), 3, generator=generator, device=device)
    shift_BC = deviation * draws_B3 @ _principal_steps(device)
    images_BHWC.add_(shift_BC[:, None, None, :])


def _grey(images_BHWC: Tensor) -> Tensor:
    return (images_BHWC @ _luma(images_BHWC.device)).unsqueeze(-1)


def _blend_(images_BHWC: Tensor, base: Tensor, factor: Tensor) -> None:
    """Replace images by base + factor x (images - base), clipped to [0, 255], in place."""
    images_BHWC.sub_(base).mul_(factor).add_(base).clamp_(0, 255)


@lru_cache(maxsize=8)
def _luma(device: torch.device) -> Tensor:
    # cached here and below, because a new tensor in each step would stall a GPU for the copy
    return torch.tensor(_LUMA, device=device)


@lru_cache(maxsize=8)
def _principal_steps(device: torch.device) -> Tensor:
    """Return the principal components, each times its eigenvalue, for images in [0, 255]."""
    eigenvalues = torch.tensor(_EIGENVALUES, device=device)
    return 255 * eigenvalues[:, None] * torch.tensor(_COMPONENTS, device=device)
