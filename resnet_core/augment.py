"""What the device does to a batch of images: pure functions of tensors and a generator.

Shapes: B images, H and W pixels, C = 3 channels.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

from resnet_core.config import AugmentConfig, Rgb


def step_generator(seed: int, step: int, rank: int, device: torch.device) -> torch.Generator:
    """The generator of one rank's draws in one step.

    It depends on nothing else, so that a resumed run has no generator state to restore.
    """
    key = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key, "big"))


def random_flip(images_BHWC: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half; any dtype."""
    shape, device = (len(images_BHWC), 1, 1, 1), images_BHWC.device
    heads = torch.randint(2, shape, generator=generator, device=device, dtype=torch.bool)
    return torch.where(heads, images_BHWC.flip(2), images_BHWC)


@lru_cache(maxsize=8)
def _channel_constants(mean: Rgb, std: Rgb, device: torch.device) -> tuple[Tensor, Tensor]:
    # cached, because making them anew in each step would stall a GPU for the copy
    return 255 * torch.tensor(mean, device=device), 255 * torch.tensor(std, device=device)


def normalize(images_BHWC: Tensor, mean: Rgb, std: Rgb) -> Tensor:
    """uint8 B x H x W x C to float32 B x C x H x W, (x / 255 - mean) / std; channels_last in memory."""
    center, scale = _channel_constants(mean, std, images_BHWC.device)
    return images_BHWC.float().sub_(center).div_(scale).permute(0, 3, 1, 2)


def augment(images_BHWC: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Training images: uint8 B x H x W x C to float32 B x C x H x W."""
    if config.flip:
        # before normalizing: a quarter of the bytes
        images_BHWC = random_flip(images_BHWC, generator)
    return normalize(images_BHWC, config.mean, config.std)
