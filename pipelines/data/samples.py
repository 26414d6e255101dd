"""What prepare knows about a source of labelled images, whatever the images are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

TRAIN = "train"
TEST = "test"

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSample:
    """One labelled image as the source holds it."""

    image: bytes | npt.NDArray[np.uint8]  # encoded file, or pixels HW
    label: int  # index into the source's class names
    key: str  # name in the source: relative path or array position
    split: str


class Samples(Protocol):
    """Samples of one split with random access; a small selection is cheap to send to another process and read there."""

    def __len__(self) -> int: ...

    @property
    def mean_bytes(self) -> float:
        """Mean size of one image as the source holds it."""

    def take(self, positions: Positions) -> Samples:
        """The samples at these positions, in this order."""

    def read(self) -> Iterator[SourceSample]:
        """All samples in order. Raises UserError where a file cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A closed set of labelled images."""

    description: str  # for people; without the place that it was read from
    fingerprint: str  # sha256 of the listing or of the files
    class_names: tuple[str, ...]
    splits: Mapping[str, Samples]
    side: int  # pixels of the shorter side of every image; 0 = image files, each of its own size
    channels: int  # 1 or 3

    @property
    def rows(self) -> dict[str, int]:
        """Samples of each split."""
        return {split: len(samples) for split, samples in self.splits.items()}

    @property
    def total_rows(self) -> int:
        """Samples of all splits."""
        return sum(self.rows.values())


def held_out(keys: Sequence[str], count: int, seed: int) -> npt.NDArray[np.bool_]:
    """Mask of the `count` keys with the smallest seeded hash: a choice by the names, not by their order."""
    ranked = sorted(range(len(keys)), key=lambda index: hashlib.sha256(f"{seed}:{keys[index]}".encode()).digest())
    mask = np.zeros(len(keys), dtype=bool)
    mask[ranked[:count]] = True
    return mask
