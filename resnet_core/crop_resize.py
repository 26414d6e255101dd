"""Crop and resize a whole batch on its device in two batched matrix products; each image has its own window.

The filter is widened where an image shrinks: antialiasing, as in Pillow and in torchvision's `antialias=True`. The
filter is separable and linear in the pixels. So the result is each image times two matrices, one for the columns and
one for the rows, and the image's window decides both.

Shapes: B images, H and W pixels, C channels, S the side of the result, L a source's H or W.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]
WINDOW = (2, 4)
"""Shape of one window: two rows, across and down; each is (start, length, low, high), in pixels of the source.

The S pixels of the result lie evenly in [start, start + length), which may begin or end outside the image. The filter
sees only the pixels low <= j < high. A result pixel whose centre is outside [low, high] becomes zero.
"""


def resample(images_BHWC: Tensor, windows_B24: Tensor, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Return the windows of the images, resized: B x S x S x C of the same dtype.

    Pillow and torchvision round uint8 twice, once per side, and in opposite order; this function rounds once. So no
    bilinear value differs by more than one level of 255 from either of them. A bicubic value differs by at most two,
    because Pillow and torchvision also clip to [0, 255] between the two sides.

    Args:
        images_BHWC: uint8, or float32, which is not rounded. The array may be larger than the images in it, if no
            window's `high` is outside its image.
        windows_B24: float64, on the images' device; see `WINDOW`.
    """
    batch, height, width, channels = images_BHWC.shape
    across_BSW = _weights(windows_B24[:, 0], size, width, interpolation)
    down_BSH = _weights(windows_B24[:, 1], size, height, interpolation)
    columns_BWX = images_BHWC.permute(0, 2, 1, 3).float().reshape(batch, width, height * channels)
    narrow_BSX = across_BSW @ columns_BWX
    in_levels = not images_BHWC.is_floating_point()
    if in_levels and interpolation == "bicubic":
        narrow_BSX.clamp_(0, 255)
    rows_BHX = narrow_BSX.view(batch, size, height, channels).transpose(1, 2).reshape(batch, height, size * channels)
    result_BSSC = (down_BSH @ rows_BHX).view(batch, size, size, channels)
    return result_BSSC.add_(0.5).clamp_(0, 255).to(torch.uint8) if in_levels else result_BSSC


def _weights(side_B4: Tensor, size: int, length: int, interpolation: Interpolation) -> Tensor:
    """Return the weight of each source pixel of one side in each result pixel, B x S x L; rows sum to one or zero."""
    start_B1, span_B1, low_B1, high_B1 = side_B4.unsqueeze(-1).unbind(1)
    step_B1 = span_B1 / size
    centers_BS = start_B1 + (torch.arange(size, device=side_B4.device) + 0.5) * step_B1
    inside_BS = (centers_BS >= low_B1) & (centers_BS <= high_B1)
    # only the fraction of a pixel needs float64: float32 holds whole numbers of pixels exactly
    whole_BS = centers_BS.floor()
    fraction_BS1 = (centers_BS - whole_BS - 0.5).float().unsqueeze(-1)
    pixels_L = torch.arange(length, device=side_B4.device)
    distance_BSL = (pixels_L - whole_BS.float().unsqueeze(-1)).sub_(fraction_BS1).abs_()
    weights_BSL = _filter(distance_BSL.div_(step_B1.clamp(min=1).float().unsqueeze(-1)), interpolation)
    seen_B1L = (pixels_L >= low_B1.unsqueeze(-1)) & (pixels_L < high_B1.unsqueeze(-1))
    weights_BSL *= seen_B1L & inside_BS.unsqueeze(-1)
    return weights_BSL.div_(weights_BSL.sum(dim=2, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny))


def _filter(distance: Tensor, interpolation: Interpolation) -> Tensor:
    """Return the filter at distances >= 0: the triangle, or Keys' cubic (a = -1/2) as in Pillow and torchvision."""
    if interpolation == "bilinear":
        return distance.neg_().add_(1).clamp_(min=0)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))  # noqa: PLR2004 - where the pieces end
