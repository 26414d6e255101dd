"""Random erasing: replace a box of random place and shape in each image.

Shapes: B images, N candidate boxes, C channels, H and W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resnet_core.config import AugmentConfig

_CANDIDATES = 10


def random_erase_(images_BCHW: Tensor, config: AugmentConfig, generator: torch.Generator) -> None:
    """Replace a random box of each image, with probability `erase_prob`, by zeros or standard normal noise; in place.

    The images are already normalized, so zero is the mean colour. Source: Zhong et al. 2020, algorithm 1.
    """
    mask_B1HW = erased(images_BCHW.shape, config, generator, images_BCHW.device).unsqueeze(1)
    if config.erase_mode == "zero":
        images_BCHW.masked_fill_(mask_B1HW, 0.0)
    else:
        noise = torch.empty_like(images_BCHW).normal_(generator=generator)
        images_BCHW.lerp_(noise, mask_B1HW.to(images_BCHW.dtype))  # exact, because each weight is 0 or 1


def erased(
    shape: torch.Size | tuple[int, int, int, int],
    config: AugmentConfig,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Return the mask, B x H x W, of the pixels to erase in images of `shape` B x C x H x W.

    Boxes are distributed as in torchvision's RandomErasing: of ten random candidates, the first one that is smaller
    than the image in both directions is used. An image without such a candidate is not changed.
    """
    count, _, height, width = shape
    area, aspect, y, x = torch.rand(4, count, _CANDIDATES, generator=generator, device=device).unbind()
    area = height * width * _between(area, *config.erase_area)
    aspect = _between(aspect, *map(math.log, config.erase_aspect)).exp()
    h_BN, w_BN = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits_BN = (h_BN < height) & (w_BN < width)
    chosen = torch.rand(count, generator=generator, device=device) < config.erase_prob
    first_B1 = fits_BN.to(torch.uint8).argmax(dim=1, keepdim=True)
    h, w, y, x = (each.gather(1, first_B1) for each in (h_BN, w_BN, y, x))
    top, left = (y * (height - h + 1)).floor(), (x * (width - w + 1)).floor()
    rows_BH, columns_BW = _within(height, top, h), _within(width, left, w)
    chosen &= fits_BN.any(dim=1)
    return chosen[:, None, None] & rows_BH[:, :, None] & columns_BW[:, None, :]


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform


def _within(length: int, start_B1: Tensor, extent_B1: Tensor) -> Tensor:
    """Return the mask, B x length, of the `extent` positions from `start` on."""
    positions = torch.arange(length, device=start_B1.device)
    return (positions >= start_B1) & (positions < start_B1 + extent_B1)
