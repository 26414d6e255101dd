"""Labelled images held in memory: what small data sets of equal images come as."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.data.samples import Contents, Labels, Positions, Source, SourceSample


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrays:
    """Samples of one split."""

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
    """A source of arrays of one shape; `digest` has been fed what they were made from."""
    first = next(iter(splits.values())).images
    contents = Contents(class_names=class_names, splits=splits, fingerprint=digest.hexdigest())
    return Source(
        description=description,
        side=min(first.shape[1:3]),
        channels=first.shape[3] if first.ndim > 3 else 1,  # noqa: PLR2004
        load=lambda: contents,
    )
