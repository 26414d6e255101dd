"""The label sets of a multi-label source: which classes each image has.

Images share few distinct sets, so a sample keeps only the number of its set. Splits, plans and reports therefore work
with one number per sample, as they do for a source with one class per image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSets:
    """Distinct sets of classes, by number. A set may be empty: the image then has none of the classes."""

    classes: npt.NDArray[np.int32]  # class indices of each set, ascending, one set after another
    ends: npt.NDArray[np.int64]  # end of each set in `classes`

    @classmethod
    def of(cls, sets: Iterable[Sequence[int]]) -> LabelSets:
        """Store sets, each given as class indices in any order."""
        classes: list[int] = []
        ends: list[int] = []
        for each in sets:
            classes += sorted(set(each))
            ends.append(len(classes))
        return cls(classes=np.array(classes, dtype=np.int32), ends=np.array(ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> list[int]:
        """Return the class indices of a set, ascending."""
        begin = int(self.ends[number - 1]) if number else 0
        indices: list[int] = self.classes[begin : int(self.ends[number])].tolist()
        return indices

    @property
    def sizes(self) -> Counts:
        """Return the number of classes of each set."""
        return np.diff(self.ends, prepend=0)


def class_counts(labels: npt.NDArray[np.int32], classes: int, sets: LabelSets | None) -> Counts:
    """Return the number of samples of each class, int64 [classes]; of several classes of a sample, each counts.

    Args:
        labels: for each sample, its class index, or the number of its label set.
        classes: number of classes.
        sets: the label sets; None = each sample has one class.
    """
    if sets is None:
        return np.bincount(labels, minlength=classes).astype(np.int64)
    of_sets = np.bincount(labels, minlength=len(sets))
    repeated = np.repeat(of_sets, sets.sizes)
    return np.bincount(sets.classes, weights=repeated, minlength=classes).astype(np.int64)
