"""Stochastic depth and dropout whose masks come from a generator that the caller hands in.

Masks are drawn once per forward pass, before the first block: a block that is computed twice, for checkpointing, then
sees the same one. Shapes: B images, L blocks, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from resnet_core.config.model import DropPathShape


def drop_rates(largest: float, shape: DropPathShape, blocks: int) -> list[float]:
    """Each block's chance to be left out: `linear` is rate l / L at block l of 1 to L (Huang et al. 2016, eq. 4)."""
    if shape == "uniform":
        return [largest] * blocks
    return [largest * number / blocks for number in range(1, blocks + 1)]


def draw_survival(rates_L: Tensor, batch: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
    """L tensors of B x 1 x 1 x 1: 0 where an image skips the block, else 1 / (1 - rate), whose mean over draws is 1."""
    keep_L1 = (1 - rates_L.float()).unsqueeze(1)
    drawn_LB = torch.rand(len(rates_L), batch, generator=generator, device=rates_L.device)
    return ((drawn_LB < keep_L1) / keep_L1).view(len(rates_L), batch, 1, 1, 1).unbind()


def draw_dropout(
    rate: float, shape_BC: tuple[int, int], device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """B x C: 0 with chance `rate`, else 1 / (1 - rate)."""
    return (torch.rand(shape_BC, generator=generator, device=device) >= rate) / (1 - rate)
