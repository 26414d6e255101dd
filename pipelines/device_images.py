"""Training images made on a worker's device, from blocks of `load_undecoded`: JPEGs decoded, then all of them cropped.

    raw pixels   image uint8 [n,H,W,C]; one copy to the device
    resident     place int64 [n] in `DeviceImages.resident_NHWC`
    JPEG         image object [n] of bytes, width, height int32 [n], coded bool [n]; nvJPEG on a GPU, libjpeg on a CPU

All have window float64 [n, r * 8], the windows of r views of each sample, and size int32 [n], the side S of the crops.
The device is a CPU's as well as a GPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.data.decode import DecodeError, decode_rgb
from pipelines.device_jpeg import Flat, decoded, from_pixels, padded
from pipelines.side_stream import SideStream
from resnet_core.resample import WINDOW, Interpolation, resample

_PIXELS_AT_ONCE = 32 * 2**20  # of sources, padding included: some 800 MB of float32 while they are cropped
REFUSED = "the device's JPEG decoder refuses some of the images: the host decodes these, which takes longer"

Rows = dict[str, npt.NDArray[Any]]


class UndecodableError(Exception):
    """Images that neither the device nor the host decodes."""

    def __init__(self, reasons: dict[int, str]) -> None:
        """`reasons` has what is wrong with the images, by their places among the rows of all blocks."""
        super().__init__(reasons)
        self.reasons = reasons


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

    def crops(
        self, blocks: Sequence[Rows], stream: SideStream | None = None, tell: Callable[[str], None] | None = None
    ) -> Tensor:
        """Make the crops of blocks of one size S, uint8 [r * n, S, S, 3]: the first view of every sample, then the
        second ones. The host waits for the device before it decodes JPEGs, and nowhere else.

        Args:
            stream: The one that the thread has entered; None = the thread works on the device's current stream.
            tell: Takes a line where the host decodes what the device refused.

        Raises:
            UndecodableError: JPEGs that do not decode.
        """
        stream = stream or SideStream(self.device)
        size, count = int(blocks[0]["size"][0]), sum(len(block["id"]) for block in blocks)
        windows = stream.send([block["window"] for block in blocks]).view(count, -1, *WINDOW).transpose(0, 1)
        images = torch.empty(len(windows), count, size, size, 3, dtype=torch.uint8, device=self.device)
        for places, sources in self._sources(blocks, stream, tell):
            for view, of_view in enumerate(windows):  # grey is repeated in all channels
                images[view, places] = resample(sources, of_view[places], size, self.interpolation)
        return images.flatten(0, 1)

    def _sources(
        self, blocks: Sequence[Rows], stream: SideStream, tell: Callable[[str], None] | None
    ) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """(which samples of the blocks, their whole images uint8 B x H x W x C, in arrays of the largest of them)."""
        if "image" not in blocks[0]:
            assert self.resident_NHWC is not None
            places = stream.send([block["place"] for block in blocks])
            for some in _of_one_size(len(places), self.resident_NHWC.shape[1]):
                yield some, self.resident_NHWC[places[some]]
        elif blocks[0]["image"].dtype != object:
            whole = stream.send([block["image"] for block in blocks])
            for some in _of_one_size(len(whole), whole.shape[1]):
                yield some, whole[some]
        else:
            names = ("image", "coded", "height", "width")
            rows = {name: np.concatenate([block[name] for block in blocks]) for name in names}
            pictures = self._pictures(rows, stream, tell)
            for alike in _of_similar_size(rows["height"], rows["width"]):
                yield stream.send([alike]), padded([pictures[place] for place in alike.tolist()], stream)

    def _pictures(self, rows: Rows, stream: SideStream, tell: Callable[[str], None] | None) -> list[Flat]:
        """The whole images: JPEGs as one batch, the others, and those that the device refuses, from their pixels."""
        jpegs = np.flatnonzero(rows["coded"])
        pictures = dict(zip(jpegs.tolist(), decoded(rows["image"][jpegs].tolist(), self.device, stream), strict=True))
        pixels: dict[int, bytes | npt.NDArray[np.uint8]] = {}
        reasons: dict[int, str] = {}
        for place, coded in enumerate(rows["coded"].tolist()):
            if not coded:
                pixels[place] = rows["image"][place]
            elif pictures[place] is None:  # the device does not say what is wrong; the host does, or knows better
                try:
                    pixels[place] = decode_rgb(rows["image"][place])
                except DecodeError as error:
                    reasons[place] = str(error)
                else:
                    (tell or _to_nobody)(REFUSED)
        if reasons:
            raise UndecodableError(reasons)
        sides = [(int(rows["height"][place]), int(rows["width"][place])) for place in pixels]
        pictures |= zip(pixels, from_pixels(list(pixels.values()), sides, stream), strict=True)
        return [picture for place in range(len(rows["coded"])) if (picture := pictures[place]) is not None]


def _to_nobody(_: str) -> None:
    """Drop a line."""


def _of_one_size(count: int, side: int) -> Iterator[slice]:
    """As many square images as fit together into `_PIXELS_AT_ONCE`."""
    step = max(1, _PIXELS_AT_ONCE // side**2)
    for begin in range(0, count, step):
        yield slice(begin, begin + step)


def _of_similar_size(heights: npt.NDArray[np.int32], widths: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.int64]]:
    """Places of images, small ones first, as many as fit together into `_PIXELS_AT_ONCE`."""
    together: list[int] = []
    height = width = 0
    for place in np.argsort(heights.astype(np.int64) * widths, kind="stable").tolist():
        higher, wider = max(height, int(heights[place])), max(width, int(widths[place]))
        if together and (len(together) + 1) * higher * wider > _PIXELS_AT_ONCE:
            yield np.asarray(together)
            together, higher, wider = [], int(heights[place]), int(widths[place])
        together.append(place)
        height, width = higher, wider
    if together:
        yield np.asarray(together)
