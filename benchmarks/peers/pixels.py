"""Torchvision's fastest path from a JPEG file to a cropped, flipped uint8 tensor; all loaders of torch use it here."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from benchmarks.peers.measure import CROP, RATIO, SCALE

torch.set_num_threads(1)

_CROP = v2.Compose([v2.RandomResizedCrop(CROP, scale=SCALE, ratio=RATIO, antialias=True), v2.RandomHorizontalFlip()])


def view(record: bytes | Tensor) -> Tensor:
    """Decode, crop and flip the bytes of a JPEG file: uint8 3 x 224 x 224."""
    data = record if isinstance(record, Tensor) else torch.frombuffer(bytearray(record), dtype=torch.uint8)
    return _CROP(decode_jpeg(data, mode=ImageReadMode.RGB))
