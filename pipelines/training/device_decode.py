"""Make training images on a worker's device from blocks of `load_undecoded`: decode JPEGs, then crop all images.

    raw pixels   image uint8 [n,H,W,C]; one copy to the device
    cached       place int64 [n], indices into `DeviceImages.cached_NHWC`
    JPEG         image object [n] of bytes, width, height int32 [n], coded bool [n]; nvJPEG on a GPU, libjpeg on a CPU

`coded` is false for images that only the host can read, which are RGB pixels already. All blocks also have two columns:
window float64 [n, r * 8] has the windows of the r crops of each sample; size int32 [n] has the side S of the crops. The
device may be a GPU or the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.data.images.pillow import DecodeError, decode_rgb
from pipelines.training.device_jpeg import Flat, decoded, from_pixels, padded
from pipelines.training.side_stream import SideStream
from resnet_core.crop_resize import WINDOW, Interpolation, resample

_PIXELS_AT_ONCE = 32 * 2**20  # of whole images, padding included: about 800 MB of float32 while they are cropped
REFUSED = "the device's JPEG decoder rejects some images: the host decodes them, which takes longer"

Rows = dict[str, npt.NDArray[Any]]


class UndecodableError(Exception):
    """Images that neither the device nor the host can decode."""

    def __init__(self, reasons: dict[int, str]) -> None:
        """Keep `reasons`: what is wrong with each image, by its index among the rows of all blocks."""
        super().__init__(reasons)
        self.reasons = reasons


def made_on_device(rows: Rows) -> bool:
    """Return whether the images of a block must still be made on the device."""
    return "window" in rows


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceImages:
    """Makes the images of blocks."""

    device: torch.device
    interpolation: Interpolation = "bilinear"
    cached_NHWC: Tensor | None = None
    """Images on the device; the column `place` of a block has indices into them."""

    def crops(
        self, blocks: Sequence[Rows], stream: SideStream | None = None, warn: Callable[[str], None] | None = None
    ) -> Tensor:
        """Make the crops of blocks whose crops all have side S.

        The host waits for the device before JPEGs are decoded, and nowhere else.

        Args:
            stream: The stream that the thread has entered; None = the thread works on the device's current stream.
            warn: Called with a line when the host decodes images that the device rejects.

        Returns:
            uint8 [r * n, S, S, 3]: the first crop of every sample, then the second crop of every sample, and so on.

        Raises:
            UndecodableError: some JPEGs do not decode.
        """
        stream = stream or SideStream(self.device)
        size, count = int(blocks[0]["size"][0]), sum(len(block["id"]) for block in blocks)
        windows = stream.send([block["window"] for block in blocks]).view(count, -1, *WINDOW).transpose(0, 1)
        images = torch.empty(len(windows), count, size, size, 3, dtype=torch.uint8, device=self.device)
        for places, sources in self._sources(blocks, stream, warn):
            for crop, crop_windows in enumerate(windows):  # a grey image is repeated in all channels
                images[crop, places] = resample(sources, crop_windows[places], size, self.interpolation)
        return images.flatten(0, 1)

    def _sources(
        self, blocks: Sequence[Rows], stream: SideStream, warn: Callable[[str], None] | None
    ) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Yield (which samples, their whole images uint8 B x H x W x C), padded to the largest image of the array."""
        if "image" not in blocks[0]:
            assert self.cached_NHWC is not None
            places = stream.send([block["place"] for block in blocks])
            for some in _of_one_size(len(places), self.cached_NHWC.shape[1]):
                yield some, self.cached_NHWC[places[some]]
        elif blocks[0]["image"].dtype != object:
            whole = stream.send([block["image"] for block in blocks])
            for some in _of_one_size(len(whole), whole.shape[1]):
                yield some, whole[some]
        else:
            names = ("image", "coded", "height", "width")
            rows = {name: np.concatenate([block[name] for block in blocks]) for name in names}
            whole_images = self._whole_images(rows, stream, warn)
            for group in _of_similar_size(rows["height"], rows["width"]):
                yield stream.send([group]), padded([whole_images[place] for place in group.tolist()], stream)

    def _whole_images(self, rows: Rows, stream: SideStream, warn: Callable[[str], None] | None) -> list[Flat]:
        """Return the whole images. JPEGs decode as one batch; JPEGs that the device rejects decode on the host."""
        jpegs = np.flatnonzero(rows["coded"])
        images = dict(zip(jpegs.tolist(), decoded(rows["image"][jpegs].tolist(), self.device, stream), strict=True))
        pixels: dict[int, bytes | npt.NDArray[np.uint8]] = {}
        reasons: dict[int, str] = {}
        for place, coded in enumerate(rows["coded"].tolist()):
            if not coded:
                pixels[place] = rows["image"][place]
            elif images[place] is None:  # the device gives no reason; the host gives one, or decodes the image
                try:
                    pixels[place] = decode_rgb(rows["image"][place])
                except DecodeError as error:
                    reasons[place] = str(error)
                else:
                    (warn or _ignore)(REFUSED)
        if reasons:
            raise UndecodableError(reasons)
        sides = [(int(rows["height"][place]), int(rows["width"][place])) for place in pixels]
        images |= zip(pixels, from_pixels(list(pixels.values()), sides, stream), strict=True)
        return [image for place in range(len(rows["coded"])) if (image := images[place]) is not None]


def _ignore(_: str) -> None:
    """Ignore a warning."""


def _of_one_size(count: int, side: int) -> Iterator[slice]:
    """Yield slices of `count` square images; the images of a slice have at most `_PIXELS_AT_ONCE` pixels."""
    step = max(1, _PIXELS_AT_ONCE // side**2)
    for begin in range(0, count, step):
        yield slice(begin, begin + step)


def _of_similar_size(heights: npt.NDArray[np.int32], widths: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield groups of image indices, small images first; a padded group has at most `_PIXELS_AT_ONCE` pixels."""
    group: list[int] = []
    height = width = 0
    for place in np.argsort(heights.astype(np.int64) * widths, kind="stable").tolist():
        higher, wider = max(height, int(heights[place])), max(width, int(widths[place]))
        if group and (len(group) + 1) * higher * wider > _PIXELS_AT_ONCE:
            yield np.asarray(group)
            group, higher, wider = [], int(heights[place]), int(widths[place])
        group.append(place)
        height, width = higher, wider
    if group:
        yield np.asarray(group)
