"""Transforms of each image of a batch: pure functions of tensors and a generator that do not wait for the device.

Shapes: B images, H and W pixels, C = 3 channels. `resnet_core.augment.mixing` mixes images with each other.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from resnet_core.augment.erasing import random_erase_
from resnet_core.augment.photometric import jitter_color_, shift_lighting_
from resnet_core.config import AugmentConfig, Rgb


def step_generator(seed: int, step: int, rank: int, device: torch.device) -> torch.Generator:
    """Return the generator of one rank's random numbers in one step.

    It depends on the arguments only, so a resumed run has no generator state to restore.
    """
    key = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key, "big"))


def random_flip(images_BHWC: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 0.5; any dtype."""
    count, device = len(images_BHWC), images_BHWC.device
    heads = torch.randint(2, (count,), generator=generator, device=device, dtype=torch.bool)
    mirror = _mirror_in_turn if device.type == "cpu" else _mirror_at_once
    return mirror(images_BHWC, heads)


def _mirror_in_turn(images_BHWC: Tensor, mirrored_B: Tensor) -> Tensor:
    """Mirror one image at a time: five times faster on a CPU, the only device where reading the draws is free."""
    pairs = zip(images_BHWC, mirrored_B.tolist(), strict=True)
    return torch.stack([image.flip(1) if mirrored else image for image, mirrored in pairs])


def _mirror_at_once(images_BHWC: Tensor, mirrored_B: Tensor) -> Tensor:
    return torch.where(mirrored_B[:, None, None, None], images_BHWC.flip(2), images_BHWC)


def normalize(images_BHWC: Tensor, mean: Rgb | Tensor, std: Rgb) -> Tensor:
    """Convert uint8 B x H x W x C to float32 B x C x H x W, (x / 255 - mean) / std; channels_last in memory.

    Args:
        mean: per channel, or a mean image H x W x C on the images' device; in both, images are in [0, 1]. A mean image
            of another size is resampled (bilinear, antialiased): a curriculum's phase, or evaluation at another scale.
    """
    return _normalize_(images_BHWC.float(), mean, std)


def augment(
    images_BHWC: Tensor, config: AugmentConfig, generator: torch.Generator, mean_image_HWC: Tensor | None = None
) -> Tensor:
    """Augment training images: uint8 B x H x W x C to float32 B x C x H x W.

    Args:
        mean_image_HWC: mean image of the training split, in [0, 1]; `config.pixel_mean` needs it.
    """
    mean = center_of(config, mean_image_HWC)
    if config.flip:
        # before normalizing, because uint8 has a quarter of the bytes
        images_BHWC = random_flip(images_BHWC, generator)
    images_BHWC = images_BHWC.float()  # a copy, so the next transforms may work in place
    if config.color_jitter:
        jitter_color_(images_BHWC, config.color_jitter, generator)
    if config.lighting:
        shift_lighting_(images_BHWC, config.lighting, generator)
    images_BCHW = _normalize_(images_BHWC, mean, config.std)
    if config.erase_prob:
        random_erase_(images_BCHW, config, generator)
    return images_BCHW


def center_of(config: AugmentConfig, mean_image_HWC: Tensor | None) -> Rgb | Tensor:
    """Return what `normalize` subtracts: `config.mean`, or the mean image with `config.pixel_mean`.

    Raises:
        ValueError: `config.pixel_mean` is set and there is no mean image.
    """
    if not config.pixel_mean:
        return config.mean
    if mean_image_HWC is None:
        raise ValueError("augment.pixel_mean needs the mean image of the training split")
    return mean_image_HWC


def _normalize_(images_BHWC: Tensor, mean: Rgb | Tensor, std: Rgb) -> Tensor:
    device, (height, width) = images_BHWC.device, images_BHWC.shape[1:3]
    center = 255 * at_size(mean, height, width) if isinstance(mean, Tensor) else _times_255(mean, device)
    return images_BHWC.sub_(center).div_(_times_255(std, device)).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def _times_255(rgb: Rgb, device: torch.device) -> Tensor:
    # cached, because a new tensor in each step would stall a GPU for the copy
    return 255 * torch.tensor(rgb, device=device)


def at_size(image_HWC: Tensor, height: int, width: int) -> Tensor:
    """Return the image, resampled if it has another size."""
    if image_HWC.shape[:2] == (height, width):
        return image_HWC
    image_1CHW = image_HWC.permute(2, 0, 1).unsqueeze(0)
    resized = F.interpolate(image_1CHW, (height, width), mode="bilinear", antialias=True)
    return resized.squeeze(0).permute(1, 2, 0)
