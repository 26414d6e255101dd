"""Mixup and CutMix: mix every image of a batch and its label with those of the image before it.

Shapes: B images, C channels, H and W pixels. Random draws stay on the device, so the host does not wait for them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from resnet_core.config import AugmentConfig
from resnet_core.mixed_labels import MixedLabels


def mix(
    images_BCHW: Tensor, labels_B: Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, MixedLabels]:
    """Mix a batch with itself, rolled by one image; one draw for the batch (the batch mode of torchvision and timm).

    A batch is mixed with probability `mix_prob`; otherwise every image keeps weight 1. If mixup and CutMix are both on,
    `cutmix_share` is the probability of CutMix. If the recipe has neither, return images and labels unchanged and
    draw nothing.
    """
    if not config.mixes:
        return images_BCHW, MixedLabels(labels_B=labels_B, other_B=None, share_B=None)
    height, width = images_BCHW.shape[2:]
    weight, kept_HW = draw_mix(config, height, width, generator, images_BCHW.device)
    mixed = images_BCHW.lerp(images_BCHW.roll(1, 0), (1 - kept_HW).to(images_BCHW.dtype))
    targets = MixedLabels(labels_B=labels_B, other_B=labels_B.roll(1, 0), share_B=weight.expand(len(labels_B)))
    return mixed, targets


def draw_mix(
    config: AugmentConfig, height: int, width: int, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Draw an image's weight (a 0-d tensor) and the weight of each of its pixels (H x W), both float32.

    Mixup gives all pixels the same weight. CutMix gives 0 in a box and 1 around it; the image's weight is their mean.
    """
    chance, kind = torch.rand(2, generator=generator, device=device).unbind()
    weight = torch.ones((), device=device)
    kept_HW = weight.expand(height, width)
    if config.mixup_alpha:
        weight = symmetric_beta(config.mixup_alpha, generator, device).float()
        kept_HW = weight.expand(height, width)
    if config.cutmix_alpha:
        outside_HW = cutmix_outside(symmetric_beta(config.cutmix_alpha, generator, device), height, width, generator)
        cuts = kind < (config.cutmix_share if config.mixup_alpha else 1.0)
        kept_HW = torch.where(cuts, outside_HW, kept_HW)
        weight = torch.where(cuts, outside_HW.mean(), weight)
    mixes = chance < config.mix_prob
    return torch.where(mixes, weight, 1.0), torch.where(mixes, kept_HW, 1.0)


def cutmix_outside(lam: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return a mask with 1 outside a random box and 0 inside: float32 H x W.

    The box has the image's aspect ratio and 1 - lam of its area; its centre is uniform. It is clipped at the image's
    border, so it may be smaller. Source: Yun et al. 2019, section 3.1 and appendix A.
    """
    y, x = torch.rand(2, generator=generator, device=lam.device).unbind()
    ratio = 0.5 * (1 - lam).sqrt()
    rows_H, columns_W = _about(y, ratio, height), _about(x, ratio, width)
    return (~(rows_H[:, None] & columns_W)).float()


def _about(place: Tensor, ratio: Tensor, length: int) -> Tensor:
    """Return the mask of the positions within `ratio` x `length` of `place` x `length`; `place` is in [0, 1)."""
    positions = torch.arange(length, device=place.device)
    centre, reach = (place * length).floor(), (ratio * length).floor()
    return (positions >= centre - reach) & (positions < centre + reach)


def symmetric_beta(alpha: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw one number from Beta(alpha, alpha), 0-d float64: exact, from two uniform draws without rejection.

    torch's Beta does not accept a generator. Bailey's polar method (1994) draws Student's t with 2 alpha degrees of
    freedom, which maps to this Beta: Devroye 1996, Random variate generation in one line of code.
    """
    u, v = torch.rand(2, generator=generator, device=device, dtype=torch.float64).unbind()
    cosine = torch.cos(2 * math.pi * v)
    odds = torch.expm1(-torch.log(u) / alpha) * cosine.square()
    return 0.5 + 0.5 * cosine.sign() * (1 + 1 / odds).rsqrt()
