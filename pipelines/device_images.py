"""Training images made on a worker's device, from blocks of `load_undecoded`: JPEGs decoded, then all of them cropped.

    raw pixels   image uint8 [n,H,W,C]; one copy to the device
    resident     place int64 [n] in `DeviceImages.resident_NHWC`
    JPEG         image object [n] of bytes, width, height int32 [n], coded bool [n]; nvJPEG on a GPU, libjpeg on a CPU

All have window float64 [n, r * 8], the windows of r views of each sample, and size int32 [n], the side S of the crops.
The device is a CPU's as well as a GPU's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.data.decode import DecodeError, decode_rgb
from resnet_core.resample import WINDOW, Interpolation, resample

_PIXELS_AT_ONCE = 32 * 2**20  # of sources, padding included: some 800 MB of float32 while they are cropped

Rows = dict[str, npt.NDArray[Any]]


class UndecodableError(Exception):
    """The image of one row, the `place`-th, does not decode."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(place, reason)
        self.place, self.reason = place, reason


def made_on_device(rows: Rows) -> bool:
    """Whether the images of a block are still to be made."""
    return "window" in rows


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceImages:
    """Makes the images of blocks."""

    device: torch.device
    interpolation: Interpolation = "bilinear"
    resident_NHWC: Tensor | None = None
    """On the device: the images of which blocks tell the places."""

    def crops(self, rows: Rows) -> Tensor:
        """Of a block's samples, uint8 [r * n, S, S, 3]: the first view of every sample, then the second ones.

        Raises:
            UndecodableError: a JPEG does not decode.
        """
        size, count = int(rows["size"][0]), len(rows["id"])
        windows = to_device(rows["window"].reshape(count, -1, *WINDOW), self.device).transpose(0, 1)
        images = torch.empty(len(windows), count, size, size, 3, dtype=torch.uint8, device=self.device)
        for places, sources in self._sources(rows):
            for view, of_view in enumerate(windows):  # grey is repeated in all channels
                images[view, places] = resample(sources, of_view[places], size, self.interpolation)
        return images.flatten(0, 1)

    def _sources(self, rows: Rows) -> Iterator[tuple[slice | list[int], Tensor]]:
        """(which samples of the block, their whole images uint8 B x H x W x C, in arrays of the largest of them)."""
        if "image" not in rows:
            assert self.resident_NHWC is not None
            places = to_device(rows["place"], self.device)
            for some in _of_one_size(len(places), self.resident_NHWC.shape[1]):
                yield some, self.resident_NHWC[places[some]]
        elif rows["image"].dtype != object:
            whole = to_device(rows["image"], self.device)
            for some in _of_one_size(len(whole), whole.shape[1]):
                yield some, whole[some]
        else:
            pictures = _decoded(rows, self.device)
            for alike in _of_similar_size(rows["height"], rows["width"]):
                yield alike, _padded([pictures[place] for place in alike])


def to_device(column: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A column as a tensor; a GPU copies it while the host goes on."""
    tensor = torch.from_numpy(np.ascontiguousarray(column))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _padded(pictures: list[Tensor]) -> Tensor:
    height, width = (max(picture.shape[side] for picture in pictures) for side in (0, 1))
    padded = pictures[0].new_zeros(len(pictures), height, width, 3)
    for row, picture in zip(padded, pictures, strict=True):
        row[: picture.shape[0], : picture.shape[1]] = picture
    return padded


def _of_one_size(count: int, side: int) -> Iterator[slice]:
    """As many square images as fit together into `_PIXELS_AT_ONCE`."""
    step = max(1, _PIXELS_AT_ONCE // side**2)
    for begin in range(0, count, step):
        yield slice(begin, begin + step)


def _of_similar_size(heights: npt.NDArray[np.int32], widths: npt.NDArray[np.int32]) -> Iterator[list[int]]:
    """Places of images, small ones first, as many as fit together into `_PIXELS_AT_ONCE`."""
    together: list[int] = []
    height = width = 0
    for place in np.argsort(heights.astype(np.int64) * widths, kind="stable").tolist():
        higher, wider = max(height, int(heights[place])), max(width, int(widths[place]))
        if together and (len(together) + 1) * higher * wider > _PIXELS_AT_ONCE:
            yield together
            together, higher, wider = [], int(heights[place]), int(widths[place])
        together.append(place)
        height, width = higher, wider
    if together:
        yield together


def _decoded(rows: Rows, device: torch.device) -> list[Tensor]:
    """The whole images, uint8 H x W x 3 each: JPEGs as one batch, the others from their pixels."""
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = [_bytes(data) for data in rows["image"][rows["coded"]]]
    try:
        decoded = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device) if encoded else []
        jpegs = iter([picture.permute(1, 2, 0) for picture in decoded])
    except RuntimeError:  # it does not say which; the host's decoder does, or knows better
        jpegs = (
            torch.tensor(_decoded_on_host(rows, place), device=device)
            for place in np.flatnonzero(rows["coded"]).tolist()
        )
    pictures = []
    for place, coded in enumerate(rows["coded"].tolist()):
        if coded:
            pictures.append(next(jpegs))
        else:
            shape = (int(rows["height"][place]), int(rows["width"][place]), 3)
            pictures.append(_bytes(rows["image"][place]).view(shape).to(device))
    return pictures


def _decoded_on_host(rows: Rows, place: int) -> npt.NDArray[np.uint8]:
    try:
        return decode_rgb(rows["image"][place])
    except DecodeError as error:
        raise UndecodableError(place, str(error)) from error


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)  # a copy: tensors may be written to
