"""Score a model on a whole split: its metrics with intervals, and its prediction for every image.

Shapes: B images of a batch, N of the split, K classes, M bins of confidence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from infra.proportions import CONFIDENCE, Interval, wilson
from pipelines.data.shards.bad_records import locate
from pipelines.evaluation.placement import InferencePlacement, PortableModel, Resources, compute
from pipelines.evaluation.predictions import Predictions
from pipelines.evaluation.scoring import ON_CPU, BatchLimit, EvalCrops, EvalData, Predict, SplitScore, answers

_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The result of an evaluation."""

    score: SplitScore
    predictions: Predictions

    @property
    def accuracy(self) -> Interval:
        return wilson(int(self.predictions.correct.sum()), len(self.predictions))

    @property
    def top5_accuracy(self) -> Interval:
        return wilson(int(self.predictions.top5.sum()), len(self.predictions))

    @property
    def headline(self) -> str:
        """The result as Markdown, which begins bold."""
        count = f"{self.score.count:,} images"
        return f"accuracy {self.score.accuracy:.2%}** ({self.accuracy} at {CONFIDENCE:.0%} confidence, {count})"

    @cached_property
    def class_accuracy(self) -> tuple[Interval | None, ...]:
        """Interval of each class's accuracy; None for a class without images."""
        counted = zip(self.score.class_correct, self.score.class_counts, strict=True)
        return tuple(wilson(right, count) if count else None for right, count in counted)

    @cached_property
    def loss(self) -> Interval:
        return _bootstrap(-np.log(self.predictions.label_probability.astype(np.float64)), self.score.loss)

    @cached_property
    def calibration_error(self) -> Interval:
        """Interval of the expected calibration error, by bootstrap: there is no formula for it."""
        bins, excess = calibration_bins(self.predictions)
        return _bootstrap(excess, self.score.calibration_error, bins)

    @property
    def mistakes(self) -> Predictions:
        """Wrong predictions, the most confident ones first."""
        wrong = self.predictions.rows(~self.predictions.correct)
        return wrong.rows(np.argsort(-wrong.probability, kind="stable"))


def evaluate(placement: InferencePlacement, model: PortableModel, data: EvalData) -> Evaluated:
    """Run `evaluate_split` where the placement says: in this process or a Ray task, with or without a GPU.

    Raises:
        UserError: as `evaluate_split`, or the model cannot be loaded, or the GPU cannot be used.
    """
    return compute(placement, _evaluate, model, data)


def evaluate_split(predict: Predict, data: EvalData, limit: BatchLimit = ON_CPU) -> Evaluated:
    """Score a model on a whole split, and keep its predictions.

    Raises:
        UserError: a shard is missing or damaged, or an image does not decode.
    """
    import torch

    from resnet_core.evaluation import EvalSums
    from resnet_core.evaluation.exact import TOP

    sums = EvalSums(len(data.manifest.class_names), torch.device("cpu"))
    parts = []
    for rows, probabilities_BK in answers(predict, data, limit):
        labels_B = torch.tensor(rows["label"])
        logits_BK = probabilities_BK.log()
        sums.update(logits_BK, labels_B)
        ranked = logits_BK.topk(min(TOP, logits_BK.shape[1]), dim=1).indices
        parts.append(
            Predictions(
                id=rows["id"].astype(np.int64),
                label=rows["label"].astype(np.int32),
                predicted=ranked[:, 0].numpy().astype(np.int32),
                probability=probabilities_BK.gather(1, ranked[:, :1])[:, 0].numpy(),
                label_probability=probabilities_BK.gather(1, labels_B[:, None].long())[:, 0].numpy(),
                top5=(ranked == labels_B[:, None]).any(dim=1).numpy(),
            )
        )
    return Evaluated(score=SplitScore.of(sums, data), predictions=Predictions.join(parts))


def _evaluate(resources: Resources, model: PortableModel, data: EvalData) -> Evaluated:
    return evaluate_split(model.open(resources.device), resources.fed(data), resources.limit)


def calibration_bins(predictions: Predictions) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return each image's bin of confidence, int64 [N] from 0 to M - 1, and its excess of correctness, float64 [N].

    The excess is 1 or 0 for a right or wrong prediction, minus the probability of the predicted class.
    """
    from resnet_core.evaluation.exact import CALIBRATION_BINS

    confidence = predictions.probability
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    return bins, predictions.correct - confidence.astype(np.float64)


def pictures(data: EvalData, ids: Iterable[int]) -> dict[int, npt.NDArray[np.uint8]]:
    """Return the central crops of a few samples by id, uint8 S x S x 3; their row groups are read again."""
    wanted = set(ids)
    places = {locate(data.manifest, sample) for sample in wanted}
    centred = dataclasses.replace(data, views=EvalCrops())
    found: dict[int, npt.NDArray[np.uint8]] = {}
    for item in centred.items(item_rows=1):  # smallest items: one row group each
        if places.isdisjoint((data.manifest.shards[shard].path, group) for shard, group in item.pieces):
            continue
        for block in centred.load(item, centred.item_rows):
            rows = zip(block["id"].tolist(), block["image"], strict=True)
            found |= {sample: np.array(image) for sample, image in rows if sample in wanted}
    return found


def _bootstrap(values: npt.NDArray[np.float64], observed: float, bins: npt.NDArray[np.int64] | None = None) -> Interval:
    """Return a bootstrap interval for the mean of `values`, or, given `bins`, for the binned absolute error.

    The binned absolute error is the sum over bins of |sum of the bin's values| / N. The interval is the basic one,
    which mirrors the bootstrap distribution. On average, the calibration error of a resample exceeds the sample's by as
    much as the sample's exceeds the true one.
    """
    from scipy.stats import bootstrap

    group = np.zeros(len(values), dtype=np.int64) if bins is None else bins

    def statistic(chosen: npt.NDArray[np.int64]) -> float:
        sums = np.bincount(group[chosen], values[chosen])
        return float(np.abs(sums).sum() / len(chosen))

    if len(values) < 2:  # noqa: PLR2004 - one value has no spread
        return Interval(observed, observed)
    found = bootstrap(
        (np.arange(len(values)),),
        statistic,
        n_resamples=_RESAMPLES,
        batch=1,
        vectorized=False,
        confidence_level=CONFIDENCE,
        method="basic",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(max(0.0, float(found.low)), max(0.0, float(found.high)))
