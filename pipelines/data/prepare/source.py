"""Sources of labelled images for prepare, independent of their file format."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from pipelines.data.images.stored import FilePixels
from pipelines.data.prepare.label_sets import LabelSets

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
SPLITS = (TRAIN, VALIDATION, TEST)
"""All splits, in the order of the ids."""

Positions = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSample:
    """One labelled image in the form that the source has it in."""

    image: bytes | npt.NDArray[np.uint8]  # encoded file, or pixels HW or HWC
    label: int  # index into the source's class names; multi-label: number of its label set
    key: str  # name in the source: relative path, archive member, or array position
    split: str
    refusal: str = ""  # why the image was not read; empty = it was read


class Samples(Protocol):
    """Samples of one split, with random access. A small selection is cheap to send to another process."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Labels:
        """Return the class index of each sample, or the number of its label set."""

    @property
    def mean_bytes(self) -> float:
        """Return the mean bytes of one image in the source."""

    def key(self, position: int) -> str:
        """Return the name of one sample in the source."""

    def take(self, positions: Positions, split: str = "") -> Self:
        """Select the samples at these positions, in this order. `split` names their new split, if any."""

    def read(self) -> Iterator[SourceSample]:
        """Yield all samples in order. Their bytes may be in memory together. Raise UserError if one cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """The classes and samples of a source."""

    class_names: tuple[str, ...]
    splits: Mapping[str, Samples]
    fingerprint: str  # sha256 of names, sizes and labels, or of the data; independent of the source's location
    notes: tuple[str, ...] = ()  # lines for users about files that are left out
    label_sets: LabelSets | None = None  # of a multi-label source; None = each sample has one class
    unlabelled: Sequence[str] = ()  # images that no row of a table names
    unusable: Sequence[tuple[str, str]] = ()  # (path, reason) of rows of a table without file or label


@dataclass(frozen=True, kw_only=True)  # no slots: `contents` is a cached property
class Source:
    """A closed set of labelled images. Slow work, such as listing an archive, is done at the first access."""

    description: str  # for users; without the location
    side: int  # pixels of the shorter side of every image; 0 = image files of different sizes
    channels: int  # 1 or 3
    load: Callable[[], Contents]
    pixels: FilePixels = "displayed"  # of image files, with prepare.pixels = "auto"
    listing: str = ""  # digest of the files' names, sizes and versions; empty = loading the contents is as cheap

    @cached_property
    def contents(self) -> Contents:
        """Return the result of `load`, which is called once. Raise UserError if the source is incomplete."""
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
    def label_sets(self) -> LabelSets | None:
        return self.contents.label_sets

    @property
    def notes(self) -> tuple[str, ...]:
        return self.contents.notes

    @property
    def rows(self) -> dict[str, int]:
        """Return the number of samples of each split."""
        return {split: len(samples) for split, samples in self.splits.items()}

    @property
    def total_rows(self) -> int:
        """Return the number of samples of all splits."""
        return sum(self.rows.values())


def held_out(keys: Sequence[str], count: int, seed: int) -> npt.NDArray[np.bool_]:
    """Return a mask of the `count` keys with the smallest seeded hash. The order of the keys does not matter."""
    ranked = sorted(range(len(keys)), key=lambda index: hashlib.sha256(f"{seed}:{keys[index]}".encode()).digest())
    mask = np.zeros(len(keys), dtype=bool)
    mask[ranked[:count]] = True
    return mask
