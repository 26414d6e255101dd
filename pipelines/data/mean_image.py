"""The mean image of a split, which `augment.pixel_mean` subtracts (He et al. 2015, section 3.4). Imports no torch.

    ImageSum.of(load_item(store, manifest, item, config), size)   in each task; then their sum, and its mean()

Integers are summed: the mean has the same bits, whatever the order of the images and however tasks share them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.data.task import Block


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSum:
    """Sum over images of one size; those of several tasks add up."""

    total: npt.NDArray[np.uint64]  # [S,S,3]
    count: int  # images

    @classmethod
    def of(cls, blocks: Iterable[Block], size: int) -> ImageSum:
        """Of all rows of blocks of images with S = `size`, such as `load_item` yields with the evaluation crop."""
        sums = (cls(total=block["image"].sum(axis=0, dtype=np.uint64), count=len(block["image"])) for block in blocks)
        return sum(sums, start=cls(total=np.zeros((size, size, 3), dtype=np.uint64), count=0))

    def __add__(self, other: ImageSum) -> ImageSum:
        return ImageSum(total=self.total + other.total, count=self.count + other.count)

    def mean(self) -> npt.NDArray[np.float32]:
        """[S,S,3] in [0, 1]."""
        return (self.total / (255 * self.count)).astype(np.float32)
