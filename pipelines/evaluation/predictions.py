"""A model's predictions, one row per image: the input of accuracy, calibration and comparisons.

Shapes: N images, in the order of their ids.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from infra.errors import UserError

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """One row for each image of a split."""

    id: npt.NDArray[np.int64]
    label: npt.NDArray[np.int32]
    predicted: npt.NDArray[np.int32]
    """The most probable class."""
    probability: npt.NDArray[np.float32]
    """Probability of the predicted class."""
    label_probability: npt.NDArray[np.float32]
    """Probability of the true class; minus its logarithm is the image's loss."""
    top5: Mask
    """Whether the true class is among the five most probable."""

    def __len__(self) -> int:
        return len(self.id)

    @property
    def correct(self) -> Mask:
        right: Mask = self.predicted == self.label
        return right

    def confusion(self, classes: int) -> npt.NDArray[np.int64]:
        """Return the number of images by [label, predicted], int64 classes x classes."""
        cells = self.label.astype(np.int64) * classes + self.predicted
        return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)

    def pairs(self) -> npt.NDArray[np.int64]:
        """Return label, predicted and number of images of each pair that occurs, int64 P x 3, sorted.

        Unlike `confusion`, the result stays small for any number of classes.
        """
        found, images = np.unique(np.stack([self.label, self.predicted], axis=1), axis=0, return_counts=True)
        return np.concatenate([found, images[:, None]], axis=1, dtype=np.int64)

    def rows(self, chosen: npt.NDArray[np.int64] | Mask | slice) -> Self:
        """Return the chosen images only."""
        return type(self)(**{name: column[chosen] for name, column in self._columns()})

    @classmethod
    def join(cls, parts: Sequence[Predictions]) -> Self:
        """Concatenate the parts, and sort the rows by id."""
        joined = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)}
        order = np.argsort(joined["id"], kind="stable")
        return cls(**{name: column[order] for name, column in joined.items()})

    def to_parquet(self) -> bytes:
        """Return a Parquet file with the columns id, label, predicted, probability, label_probability, top5."""
        return to_parquet(dict(self._columns()))

    @classmethod
    def from_parquet(cls, data: bytes) -> Self:
        """Read a file that `to_parquet` made."""
        import pyarrow.parquet as pq

        table = pq.read_table(io.BytesIO(data))
        return cls(**{field.name: table[field.name].to_numpy() for field in fields(cls)})

    def _columns(self) -> list[tuple[str, npt.NDArray[Any]]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


class _Shown(Protocol):
    """The images that a model was shown: their ids, and their labels."""

    @property
    def id(self) -> npt.NDArray[np.int64]: ...

    @property
    def label(self) -> npt.NDArray[Any]: ...


def check_same_images(new: _Shown, old: _Shown) -> None:
    """Raise UserError unless row i of both belongs to the same image."""
    if not (np.array_equal(new.id, old.id) and np.array_equal(new.label, old.label)):
        raise UserError("the two models were not shown the same images: name one data set with --data and --split")


def to_parquet(columns: dict[str, npt.NDArray[Any]]) -> bytes:
    """Return a table of columns as a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()
