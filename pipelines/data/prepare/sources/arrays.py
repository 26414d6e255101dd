"""Labelled images in memory, for small data sets whose images have one size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.data.prepare.source import Contents, Labels, Positions, Source, SourceSample


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrays:
    """The samples of one split, as arrays."""

    split: str
    images: npt.NDArray[np.uint8]  # NHW or NHWC
    labels: Labels
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def mean_bytes(self) -> float:
        return self.images.nbytes / len(self)

    def key(self, position: int) -> str:
        return self.keys[position]

    def take(self, positions: Positions, split: str = "") -> Arrays:
        return Arrays(
            split=split or self.split,
            images=self.images[positions],
            labels=self.labels[positions],
            keys=tuple(self.keys[position] for position in positions),
        )

    def read(self) -> Iterator[SourceSample]:
        for image, label, key in zip(self.images, self.labels, self.keys, strict=True):
            yield SourceSample(image=image, label=int(label), key=key, split=self.split)


def arrays_source(
    description: str, class_names: tuple[str, ...], splits: dict[str, Arrays], digest: hashlib._Hash
) -> Source:
    """Make a source from arrays of one shape. `digest` must contain the data that they were made from."""
    first = next(iter(splits.values())).images
    contents = Contents(class_names=class_names, splits=splits, fingerprint=digest.hexdigest())
    return Source(
        description=description,
        side=min(first.shape[1:3]),
        channels=first.shape[3] if first.ndim > 3 else 1,  # noqa: PLR2004
        load=lambda: contents,
    )
