"""JPEGs decoded on a device as one batch, and images of several sizes in one array, without a loop over images.

torchvision's decoder (nvJPEG on a GPU, libjpeg on a CPU) returns one tensor an image and fails as a whole where one
image fails. Shapes: B images, H and W pixels of the largest of them, C = 3 channels.
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

from pipelines.side_stream import SideStream

# torchvision wraps whatever goes wrong into "Error while decoding JPEG images", memory that ran out included. These are
# about an image. The numbers are nvJPEG's: bad, not supported, internal, not implemented, cut short; not those of the
# allocator (5), of a failed kernel (6) and of the architecture (7).
_OF_AN_IMAGE = re.compile(
    r"Error while decoding JPEG images: .*(Unknown chroma subsampling|"
    r"Failed to (get image info|parse jpeg stream|decode jpeg stream|decode batch): (3|4|8|9|10)\b)",
    re.DOTALL,
)
_OF_THE_HOST = ("allocat", "API call failed")  # in messages of torch; libjpeg's own are about the image


@dataclass(frozen=True, slots=True)
class Flat:
    """One image on the device, in whatever order of its bytes."""

    bytes_N: Tensor
    height: int
    width: int
    planar: bool  # channel by channel, as decoders write; else pixel by pixel

    @property
    def strides(self) -> tuple[int, int, int]:
        """Of rows, of columns, of channels."""
        return (self.width, 1, self.height * self.width) if self.planar else (3 * self.width, 3, 1)


def decoded(jpegs: Sequence[bytes], device: torch.device, stream: SideStream) -> list[Flat | None]:
    """Decode JPEGs; None where the device's decoder refuses one.

    Raises:
        RuntimeError: what is no image's fault, such as memory that ran out.
    """
    if not jpegs:
        return []
    views = [np.frombuffer(data, dtype=np.uint8) for data in jpegs]
    buffer = stream.host_buffer((sum(map(len, views)),), np.uint8)
    np.concatenate(views, out=buffer.numpy())
    pictures = _decoded(list(buffer.split([len(view) for view in views])), device, stream)
    return [
        None if picture is None else Flat(picture.reshape(-1), picture.shape[1], picture.shape[2], planar=True)
        for picture in pictures
    ]


def _decoded(encoded: list[Tensor], device: torch.device, stream: SideStream) -> list[Tensor | None]:
    """uint8 C x H x W each. Where the batch fails, its halves are tried, down to the images that fail alone."""
    from torchvision.io import ImageReadMode, decode_jpeg

    stream.settle()  # the decoder writes into the stream's free memory, and does not wait for its readers
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
    """Copy images of RGB pixels, of (height, width) each, to the device, all at once."""
    if not images:
        return []
    views = [image.reshape(-1) if isinstance(image, np.ndarray) else np.frombuffer(image, np.uint8) for image in images]
    parts = stream.send(views).split([len(view) for view in views])
    return [Flat(part, height, width, planar=False) for part, (height, width) in zip(parts, sides, strict=True)]


def padded(pictures: Sequence[Flat], stream: SideStream) -> Tensor:
    """Put images into one array, uint8 B x H x W x C, as large as the largest; what lies outside an image is anything.

    A GPU gathers all at once, since a slice for each image costs its host 10 to 20 microseconds. A CPU copies slices,
    four times as fast as it gathers.
    """
    return gathered(pictures, stream) if stream.asynchronous else copied_one_by_one(pictures)


def copied_one_by_one(pictures: Sequence[Flat]) -> Tensor:
    """As `padded`, by a slice for each image."""
    height, width = max(each.height for each in pictures), max(each.width for each in pictures)
    images = pictures[0].bytes_N.new_zeros(len(pictures), height, width, 3)
    for image, each in zip(images, pictures, strict=True):
        shape = (each.height, each.width, 3)
        image[: each.height, : each.width] = each.bytes_N.as_strided(shape, each.strides, each.bytes_N.storage_offset())
    return images


def gathered(pictures: Sequence[Flat], stream: SideStream) -> Tensor:
    """As `padded`, by one index for all pixels; what lies outside an image repeats its edge."""
    height, width = max(each.height for each in pictures), max(each.width for each in pictures)
    ends = np.cumsum([len(each.bytes_N) for each in pictures])
    columns = [
        (end - len(each.bytes_N), each.height - 1, each.width - 1, *each.strides)
        for each, end in zip(pictures, ends.tolist(), strict=True)
    ]
    start, low, right, down, across, deep = stream.send([_index_type(ends[-1], columns)]).T[:, :, None, None, None]
    flat = torch.cat([each.bytes_N for each in pictures])
    count: dict[str, Any] = {"dtype": start.dtype, "device": start.device}
    y, x = torch.arange(height, **count)[:, None, None], torch.arange(width, **count)[:, None]
    places_BHWC = start + torch.minimum(y, low) * down + torch.minimum(x, right) * across
    places_BHWC = places_BHWC + torch.arange(3, **count) * deep
    return flat.index_select(0, places_BHWC.flatten()).view(places_BHWC.shape)


def _index_type(total: int, columns: Sequence[tuple[int, ...]]) -> npt.NDArray[Any]:
    """The columns as indices into `total` bytes: of half the size where that is enough, as it is for a group."""
    return np.asarray(columns, dtype=np.int32 if total <= np.iinfo(np.int32).max else np.int64)
