"""Mixup and cutmix: every image of a batch and its label are mixed with those of the image before it.

Shapes: B images, C channels, H and W pixels. What is drawn stays on the device: nothing waits for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resnet_core.config import AugmentConfig
from resnet_core.targets import Targets


def mix(
    images_BCHW: Tensor, labels_B: Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Targets]:
    """Mix a batch with itself, rolled by one, by one draw for all of it (the batch mode of torchvision and timm).

    With probability `mix_prob`, else every share is 1. Where mixup and cutmix are both on, `cutmix_share` is the
    chance of the latter. Without mixing in the recipe, images and labels come back as they are, and nothing is drawn.
    """
    if not config.mixes:
        return images_BCHW, Targets(labels_B=labels_B, other_B=None, share_B=None)
    height, width = images_BCHW.shape[2:]
    share, kept_HW = draw_mix(config, height, width, generator, images_BCHW.device)
    mixed = images_BCHW.lerp(images_BCHW.roll(1, 0), (1 - kept_HW).to(images_BCHW.dtype))
    targets = Targets(labels_B=labels_B, other_B=labels_B.roll(1, 0), share_B=share.expand(len(labels_B)))
    return mixed, targets


def draw_mix(
    config: AugmentConfig, height: int, width: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What an image keeps: (its share as a 0-d tensor, the weight H x W of each of its pixels), float32.

    Mixup weighs all pixels alike; cutmix has weights 0 in a box and 1 around it, and their mean is the share.
    """
    chance, kind = torch.rand(2, generator=generator, device=device).unbind()
    share = torch.ones((), device=device)
    kept_HW = share.expand(height, width)
    if config.mixup_alpha:
        share = symmetric_beta(config.mixup_alpha, generator, device).float()
        kept_HW = share.expand(height, width)
    if config.cutmix_alpha:
        outside_HW = cutmix_outside(symmetric_beta(config.cutmix_alpha, generator, device), height, width, generator)
        cuts = kind < (config.cutmix_share if config.mixup_alpha else 1.0)
        kept_HW = torch.where(cuts, outside_HW, kept_HW)
        share = torch.where(cuts, outside_HW.mean(), share)
    mixes = chance < config.mix_prob
    return torch.where(mixes, share, 1.0), torch.where(mixes, kept_HW, 1.0)


def cutmix_outside(lam: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """1 outside a random box, 0 inside: float32 H x W.

    The box has the image's shape and 1 - lam of its area, and its centre is uniform; what leaves the image is clipped,
    so that the box may be smaller than asked for. Source: Yun et al. 2019, section 3.1 and appendix A.
    """
    y, x = torch.rand(2, generator=generator, device=lam.device).unbind()
    ratio = 0.5 * (1 - lam).sqrt()
    rows_H, columns_W = _about(y, ratio, height), _about(x, ratio, width)
    return (~(rows_H[:, None] & columns_W)).float()


def _about(place: Tensor, ratio: Tensor, length: int) -> Tensor:
    """Mask of the positions about `place` (in [0, 1)) that `ratio` of the length reaches to either side."""
    positions = torch.arange(length, device=place.device)
    centre, reach = (place * length).floor(), (ratio * length).floor()
    return (positions >= centre - reach) & (positions < centre + reach)


def symmetric_beta(alpha: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """One draw from Beta(alpha, alpha), 0-d float64; exact, from two uniform draws and without rejection.

    torch's own Beta takes no generator. Bailey's polar method (1994) draws Student's t with 2 alpha degrees of freedom,
    which maps to this beta: Devroye 1996, Random variate generation in one line of code.
    """
    u, v = torch.rand(2, generator=generator, device=device, dtype=torch.float64).unbind()
    cosine = torch.cos(2 * math.pi * v)
    odds = torch.expm1(-torch.log(u) / alpha) * cosine.square()
    return 0.5 + 0.5 * cosine.sign() * (1 + 1 / odds).rsqrt()
