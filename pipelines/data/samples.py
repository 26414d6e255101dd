"""What prepare knows about a source of labelled images, whatever the images are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
SPLITS = (TRAIN, VALIDATION, TEST)
"""In the order of the ids."""

Positions = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSample:
    """One labelled image as the source holds it."""

    image: bytes | npt.NDArray[np.uint8]  # encoded file, or pixels HW or HWC
    label: int  # index into the source's class names
    key: str  # name in the source: relative path, archive member, or array position
    split: str
    refusal: str = ""  # why the image was not read; empty = it was


class Samples(Protocol):
    """Samples of one split with random access; a small selection is cheap to send to another process and read there."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Labels:
        """Class index of each sample."""

    @property
    def mean_bytes(self) -> float:
        """Mean size of one image as the source holds it."""

    def key(self, position: int) -> str:
        """Name of one sample in the source."""

    def take(self, positions: Positions, split: str = "") -> Self:
        """The samples at these positions, in this order; of another split if one is named."""

    def read(self) -> Iterator[SourceSample]:
        """All samples in order; their bytes may be in memory together. Raises UserError where one cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What is in a source."""

    class_names: tuple[str, ...]
    splits: Mapping[str, Samples]
    fingerprint: str  # sha256 of names, sizes and labels, or of the data: the same wherever the source lies
    notes: tuple[str, ...] = ()  # what is left out, for people


@dataclass(frozen=True, kw_only=True)  # no slots: `contents` is found once and kept
class Source:
    """A closed set of labelled images. What takes long to find out, such as an archive's index, waits until asked."""

    description: str  # for people; without the place that it was read from
    side: int  # pixels of the shorter side of every image; 0 = image files, each of its own size
    channels: int  # 1 or 3
    load: Callable[[], Contents]
    listing: str = ""  # digest of the files' names, sizes and versions; empty = the contents are as cheap to find

    @cached_property
    def contents(self) -> Contents:
        """Everything that `load` finds; UserError if the source is not whole."""
        return self.load()

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.contents.class_names

    @property
    def splits(self) -> Mapping[str, Samples]:
        return self.contents.splits

    @property
    def fingerprint(self) -> str:
        return self.contents.fingerprint

    @property
    def notes(self) -> tuple[str, ...]:
        return self.contents.notes

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
