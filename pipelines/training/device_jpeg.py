"""Decode JPEGs on a device as one batch, and join images of several sizes in one array, without a loop over images.

torchvision's decoder (nvJPEG on a GPU, libjpeg on a CPU) returns a tensor for each image. If one image fails, the whole
batch fails. Shapes: B images, H and W pixels of the largest image, C = 3 channels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.training.side_stream import SideStream

# torchvision wraps every error into "Error while decoding JPEG images", even a lack of memory. This pattern matches
# errors of an image. The numbers are nvJPEG's: bad, not supported, internal, not implemented, incomplete. Left out are
# those of the allocator (5), of a failed kernel (6) and of the architecture (7).
_OF_AN_IMAGE = re.compile(
    r"Error while decoding JPEG images: .*(Unknown chroma subsampling|"
    r"Failed to (get image info|parse jpeg stream|decode jpeg stream|decode batch): (3|4|8|9|10)\b)",
    re.DOTALL,
)
_OF_THE_HOST = ("allocat", "API call failed")  # in messages of torch; messages of libjpeg are about the image


@dataclass(frozen=True, slots=True)
class Flat:
    """One image on the device as a flat array of bytes."""

    bytes_N: Tensor
    height: int
    width: int
    planar: bool  # order of the bytes: channel by channel, as decoders write; else pixel by pixel

    @property
    def strides(self) -> tuple[int, int, int]:
        """Strides of rows, columns and channels, in bytes."""
        return (self.width, 1, self.height * self.width) if self.planar else (3 * self.width, 3, 1)


def decoded(jpegs: Sequence[bytes], device: torch.device, stream: SideStream) -> list[Flat | None]:
    """Decode JPEGs; None for an image that the device's decoder rejects.

    Raises:
        RuntimeError: the cause is no image, for example a lack of memory.
    """
    if not jpegs:
        return []
    views = [np.frombuffer(data, dtype=np.uint8) for data in jpegs]
    buffer = stream.host_buffer((sum(map(len, views)),), np.uint8)
    np.concatenate(views, out=buffer.numpy())
    images = _decoded(list(buffer.split([len(view) for view in views])), device, stream)
    return [
        None if image is None else Flat(image.reshape(-1), image.shape[1], image.shape[2], planar=True)
        for image in images
    ]


def _decoded(encoded: list[Tensor], device: torch.device, stream: SideStream) -> list[Tensor | None]:
    """Decode a batch to uint8 C x H x W each. If it fails, try its halves, down to the single images that fail."""
    from torchvision.io import ImageReadMode, decode_jpeg

    stream.settle()  # the decoder writes into free memory of the stream without waiting for its readers
    try:
        return list(decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device))
    except RuntimeError as error:
        if not _of_an_image(error, device):
            raise
    if len(encoded) == 1:
        return [None]
    half = len(encoded) // 2
    return _decoded(encoded[:half], device, stream) + _decoded(encoded[half:], device, stream)


def _of_an_image(error: RuntimeError, device: torch.device) -> bool:
    if device.type == "cuda":
        return _OF_AN_IMAGE.search(str(error)) is not None
    return not any(text in str(error) for text in _OF_THE_HOST)


def from_pixels(
    images: Sequence[bytes | npt.NDArray[np.uint8]], sides: Sequence[tuple[int, int]], stream: SideStream
) -> list[Flat]:
    """Copy images of RGB pixels to the device at once; `sides` has (height, width) of each."""
    if not images:
        return []
    views = [image.reshape(-1) if isinstance(image, np.ndarray) else np.frombuffer(image, np.uint8) for image in images]
    parts = stream.send(views).split([len(view) for view in views])
    return [Flat(part, height, width, planar=False) for part, (height, width) in zip(parts, sides, strict=True)]


def padded(sources: Sequence[Flat], stream: SideStream) -> Tensor:
    """Put images into one array, uint8 B x H x W x C, as large as the largest image; the padding has any values.

    A GPU gathers all images at once, because a slice for each image costs the host 10 to 20 microseconds. A CPU copies
    slices, which is four times as fast as gathering.
    """
    return gathered(sources, stream) if stream.asynchronous else copied_one_by_one(sources)


def copied_one_by_one(sources: Sequence[Flat]) -> Tensor:
    """Pad images like `padded`, with a slice for each image."""
    height, width = max(each.height for each in sources), max(each.width for each in sources)
    images = sources[0].bytes_N.new_zeros(len(sources), height, width, 3)
    for image, each in zip(images, sources, strict=True):
        shape = (each.height, each.width, 3)
        image[: each.height, : each.width] = each.bytes_N.as_strided(shape, each.strides, each.bytes_N.storage_offset())
    return images


def gathered(sources: Sequence[Flat], stream: SideStream) -> Tensor:
    """Pad images like `padded`, with one index for all pixels; the padding repeats the edge of the image."""
    height, width = max(each.height for each in sources), max(each.width for each in sources)
    ends = np.cumsum([len(each.bytes_N) for each in sources])
    columns = [
        (end - len(each.bytes_N), each.height - 1, each.width - 1, *each.strides)
        for each, end in zip(sources, ends.tolist(), strict=True)
    ]
    start, low, right, down, across, deep = stream.send([_index_type(ends[-1], columns)]).T[:, :, None, None, None]
    flat = torch.cat([each.bytes_N for each in sources])
    count: dict[str, Any] = {"dtype": start.dtype, "device": start.device}
    y, x = torch.arange(height, **count)[:, None, None], torch.arange(width, **count)[:, None]
    places_BHWC = start + torch.minimum(y, low) * down + torch.minimum(x, right) * across
    places_BHWC = places_BHWC + torch.arange(3, **count) * deep
    return flat.index_select(0, places_BHWC.flatten()).view(places_BHWC.shape)


def _index_type(total: int, columns: Sequence[tuple[int, ...]]) -> npt.NDArray[Any]:
    """Return the columns as indices into `total` bytes: int32 if that is enough, as for every group, else int64."""
    return np.asarray(columns, dtype=np.int32 if total <= np.iinfo(np.int32).max else np.int64)
