"""A multi-label model's scores for every image of a split: the input of mean average precision and of comparisons.

Shapes: N images in the order of their ids, K classes, R resamples.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from infra.proportions import CONFIDENCE, Resampled
from infra.registry.gate import MEAN_AVERAGE_PRECISION, Score
from pipelines.evaluation.predictions import check_same_images

if TYPE_CHECKING:
    from resnet_core.evaluation.multi_label import LabelRates

_RESAMPLES, _SEED = 400, 0
_AT_ONCE = 40  # resamples in memory


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelPredictions:
    """One row for each image of a split."""

    id: npt.NDArray[np.int64]
    label: npt.NDArray[np.uint8]  # [N, K], 1 for each class of the image
    probability: npt.NDArray[np.float32]  # [N, K]

    def __len__(self) -> int:
        return len(self.id)

    @classmethod
    def join(cls, parts: Sequence[LabelPredictions]) -> Self:
        """Concatenate the parts, and sort the rows by id."""
        order = np.argsort(np.concatenate([part.id for part in parts]), kind="stable")
        return cls(
            id=np.concatenate([part.id for part in parts])[order],
            label=np.concatenate([part.label for part in parts])[order],
            probability=np.concatenate([part.probability for part in parts])[order],
        )

    def to_parquet(self) -> bytes:
        """Return a Parquet file with the columns id, label and probability; the last two are lists of K values."""
        return labels_to_parquet(self.id, {"label": self.label, "probability": self.probability})

    @classmethod
    def from_parquet(cls, data: bytes) -> Self:
        """Read a file that `to_parquet` made."""
        import pyarrow.parquet as pq

        table = pq.read_table(io.BytesIO(data))
        columns: dict[str, Any] = {
            name: np.stack(table[name].to_numpy(zero_copy_only=False)) for name in ("label", "probability")
        }
        return cls(id=table["id"].to_numpy(), **columns)

    def average_precisions(self, weights_RN: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return each class's average precision in each resample, [K, R]; NaN where no image has the class.

        A weight is how often the resample has the image.
        """
        precisions = []
        for scores, labels in zip(self.probability.T, self.label.T, strict=True):
            order = np.argsort(-scores, kind="stable")
            ends = np.flatnonzero(np.diff(scores[order], append=np.inf))
            shown = np.cumsum(weights_RN[:, order], axis=1)[:, ends]
            hits = np.cumsum(weights_RN[:, order] * labels[order], axis=1)[:, ends]
            total = hits[:, -1:]
            gains = np.diff(hits, axis=1, prepend=0) / np.where(total, total, np.nan)
            precisions.append((hits / np.maximum(shown, 1e-12) * gains).sum(axis=1))
        return np.stack(precisions)

    def rates_at(self, thresholds: Sequence[float]) -> npt.NDArray[np.float64]:
        """Return precision, recall and F1 of each class, [3, K], if its threshold decides; 0 where nothing counts."""
        reached, truth = self.probability >= np.asarray(thresholds), self.label.astype(bool)
        hits = (reached & truth).sum(axis=0)
        shown, present = reached.sum(axis=0), truth.sum(axis=0)
        wholes = ((hits, shown), (hits, present), (2 * hits, shown + present))
        return np.stack([part / np.maximum(whole, 1) for part, whole in wholes])


@dataclass(frozen=True, kw_only=True)
class EvaluatedLabels:
    """The result of a multi-label evaluation."""

    score: Score
    predictions: LabelPredictions

    @cached_property
    def rates(self) -> LabelRates:
        """Average precision and best threshold of each class."""
        import torch

        from resnet_core.evaluation.multi_label import LabelRates

        scores, labels = (torch.from_numpy(each) for each in (self.predictions.probability, self.predictions.label))
        return LabelRates.of(scores, labels)

    @property
    def headline(self) -> str:
        return f"mean average precision {self.score.mean_average_precision:.2%}** ({self.score.count:,} images)"


def labels_to_parquet(ids: npt.NDArray[np.int64], lists: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return a Parquet file with the column id and a column of K values a row for each of `lists`, [N, K]."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        for name, values in lists.items()
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": ids, **columns}), buffer)
    return buffer.getvalue()


def thresholds_of(scored: Mapping[str, Any] | None) -> tuple[float, ...]:
    """Return the threshold of each class from the details of an evaluation; () for another task or no details.

    A class without images had none: it is answered only if it is certain, from 1 on.
    """
    if scored is None or "threshold" not in scored:
        return ()
    found: list[float] = np.nan_to_num(scored["threshold"], nan=1.0).astype(float).tolist()
    return tuple(found)


def bootstrap(predictions: LabelPredictions) -> npt.NDArray[np.float64]:
    """Return each class's average precision in 400 resamples of the images, [K, R].

    The seed is fixed: two models that were shown the same images get the same resamples, so results can be paired.
    """
    rng, count = np.random.default_rng(_SEED), len(predictions)
    parts = []
    for _ in range(0, _RESAMPLES, _AT_ONCE):
        weights = rng.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE).astype(np.float64)
        parts.append(predictions.average_precisions(weights))
    return np.concatenate(parts, axis=1)


def mean_over_classes(precisions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the mean of [..., K, R] over the classes that have images, [..., R]."""
    present = ~np.isnan(precisions)
    means: npt.NDArray[np.float64] = np.where(present, precisions, 0).sum(axis=-2) / np.maximum(present.sum(axis=-2), 1)
    return means


def resampled(new: LabelPredictions, old: LabelPredictions) -> Resampled:
    """Return the difference of the mean average precisions, and its bound from a paired bootstrap of the images.

    Raises:
        UserError: the two models were not shown the same images.
    """
    check_same_images(new, old)
    once = np.ones((1, len(new)))
    observed = mean_over_classes(new.average_precisions(once)) - mean_over_classes(old.average_precisions(once))
    differences = mean_over_classes(bootstrap(new)) - mean_over_classes(bootstrap(old))
    bound = float(np.quantile(differences, 1 - CONFIDENCE, method="lower"))
    return Resampled(measure=MEAN_AVERAGE_PRECISION, difference=float(observed[0]), bound=bound, count=len(new))
