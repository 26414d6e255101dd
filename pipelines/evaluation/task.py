"""What differs between tasks: exactly one class per image, or any number of classes. Everything else asks this object.

A task decides which recipes fit, what an evaluation sums and plots, which answers a version keeps, and how the gate
compares two models. The network's head and the loss follow `model.multi_label` and the form of the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from infra.registry.gate import MEAN_AVERAGE_PRECISION, OVER_CLASSES, Decision, OverClasses, Rule, Score, decide
from pipelines.evaluation.comparison import Comparison
from pipelines.evaluation.label_predictions import EvaluatedLabels, LabelPredictions, resampled, thresholds_of
from pipelines.evaluation.placement import InferencePlacement, PortableModel, Resources, compute
from pipelines.evaluation.predictions import Predictions
from pipelines.evaluation.result import Evaluated, evaluate
from pipelines.evaluation.scoring import EvalData, answers

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from pipelines.config.recipe import Recipe
    from pipelines.evaluation.comparison_report import ComparisonReport
    from pipelines.evaluation.label_report import LabelComparisonReport, LabelReport
    from pipelines.evaluation.models import Target
    from pipelines.evaluation.report import EvaluationReport, Report
    from resnet_core.evaluation.exact import ScoreSums

Answers = Predictions | LabelPredictions
_MISTAKES_SHOWN = 25


class Task(Protocol):
    """Answers to what a run, the registry, the gate and `evaluate.py` ask."""

    mistakes_shown: int
    """Most confident mistakes that an evaluation keeps; 0 where an image is neither right nor wrong."""

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        """Return the keys that the task decides. Raises UserError if the recipe does not fit the task."""

    def sums(self, classes: int, device: torch.device) -> ScoreSums:
        """Return what an evaluation adds up."""

    def figures(self, scored: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Figure]:
        """Return the plots of classes, by name, from the details of an evaluation."""

    def facts(self, scored: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what a version's metadata has more, from the details of the evaluation that chose the checkpoint."""

    def evaluate(
        self, placement: InferencePlacement, model: PortableModel, data: EvalData
    ) -> Evaluated | EvaluatedLabels:
        """Score a model on a whole split, and keep its answers."""

    def report(self, target: Target, evaluated: Evaluated | EvaluatedLabels) -> Report:
        """Return what `evaluate.py` reports on one model."""

    def compare(self, old: Report, new: Report) -> Report:
        """Return what `evaluate.py` reports on two models. Raises UserError if their images differ."""

    def read(self, content: bytes) -> Answers:
        """Read the answers that a version keeps."""

    def decide(self, new: Answers, old: Answers, champion: str, rule: Rule, data: EvalData) -> Decision:
        """Let the gate compare two models on the same images."""


class OneLabel:
    """Classification: each image has one class."""

    mistakes_shown = _MISTAKES_SHOWN

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        if recipe.run.metric == MEAN_AVERAGE_PRECISION:
            raise UserError(f"run.metric = {recipe.run.metric!r} is for multi-label data sets: choose another metric")
        return {"model.multi_label": False}

    def sums(self, classes: int, device: torch.device) -> ScoreSums:
        from resnet_core.evaluation import EvalSums

        return EvalSums(classes, device)

    def figures(self, scored: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Figure]:
        import torch

        from infra.plots.evaluation import class_scores
        from infra.plots.training import confusion_of_pairs
        from resnet_core.evaluation.class_scores import ClassScores

        pairs = scored["pairs"] if "pairs" in scored else _pairs(scored["confusion"])
        right = pairs[pairs[:, 0] == pairs[:, 1]]
        columns = {"count": (pairs, 0), "predicted": (pairs, 1), "correct": (right, 0)}
        sums = {
            name: torch.from_numpy(np.bincount(rows[:, place], rows[:, 2], minlength=len(names)))
            for name, (rows, place) in columns.items()
        }
        found = ClassScores(**sums)
        rates = class_scores(names, found.precision.tolist(), found.recall.tolist(), found.f1.tolist())
        return {"classes": rates, "confusion": confusion_of_pairs(pairs, names)}

    def facts(self, scored: Mapping[str, Any] | None) -> dict[str, Any]:
        return {}

    def evaluate(self, placement: InferencePlacement, model: PortableModel, data: EvalData) -> Evaluated:
        return evaluate(placement, model, data)

    def report(self, target: Target, evaluated: Evaluated | EvaluatedLabels) -> EvaluationReport:
        from pipelines.evaluation.report import EvaluationReport

        return EvaluationReport(target=target, evaluated=cast(Evaluated, evaluated))

    def compare(self, old: Report, new: Report) -> ComparisonReport:
        from pipelines.evaluation.comparison_report import ComparisonReport

        return ComparisonReport(old=cast("EvaluationReport", old), new=cast("EvaluationReport", new))

    def read(self, content: bytes) -> Predictions:
        return Predictions.from_parquet(content)

    def decide(self, new: Answers, old: Answers, champion: str, rule: Rule, data: EvalData) -> Decision:
        names = data.manifest.class_names
        comparison = Comparison(new=cast(Predictions, new), old=cast(Predictions, old), class_names=names)
        over_classes = None
        if rule.measure in OVER_CLASSES:
            over_classes = comparison.resampled(cast(OverClasses, rule.measure))
        return decide(
            comparison.paired, champion=champion, margin=rule.margin, split=data.split, resampled=over_classes
        )


class AnyLabels:
    """Multi-label classification: each image has any number of classes, also none."""

    mistakes_shown = 0

    def settings(self, recipe: Recipe) -> dict[str, Any]:
        metric = recipe.run.metric
        if recipe.optim.loss == "cross_entropy":
            raise UserError(
                'optim.loss must be "bce" or "bce_sum" for a multi-label data set, got "cross_entropy": '
                "add --set optim.loss=bce"
            )
        if metric not in ("accuracy", MEAN_AVERAGE_PRECISION):
            raise UserError(f"run.metric must be {MEAN_AVERAGE_PRECISION!r} for a multi-label data set, got {metric!r}")
        for key, used in (
            ("data.sampling", recipe.data.sampling != "uniform"),
            ("loss.class_weights", bool(recipe.loss.class_weights)),
        ):
            if used:
                raise UserError(f"{key} needs one class per image, and the data set is multi-label: leave it out")
        return {"model.multi_label": True, "run.metric": MEAN_AVERAGE_PRECISION}

    def sums(self, classes: int, device: torch.device) -> ScoreSums:
        from resnet_core.evaluation.multi_label import MultiLabelSums

        return MultiLabelSums(classes, device)

    def figures(self, scored: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Figure]:
        from infra.plots.evaluation import average_precisions

        return {"average_precision": average_precisions(names, scored["average_precision"].tolist())}

    def facts(self, scored: Mapping[str, Any] | None) -> dict[str, Any]:
        if scored is None:
            raise UserError("the checkpoint has no evaluation, so no thresholds: register one that was evaluated")
        return {"thresholds": list(thresholds_of(scored))}

    def evaluate(self, placement: InferencePlacement, model: PortableModel, data: EvalData) -> EvaluatedLabels:
        return compute(placement, _evaluate_labels, model, data)

    def report(self, target: Target, evaluated: Evaluated | EvaluatedLabels) -> LabelReport:
        from pipelines.evaluation.label_report import LabelReport

        return LabelReport(target=target, evaluated=cast(EvaluatedLabels, evaluated))

    def compare(self, old: Report, new: Report) -> LabelComparisonReport:
        from pipelines.evaluation.label_report import LabelComparisonReport

        return LabelComparisonReport(old=cast("LabelReport", old), new=cast("LabelReport", new))

    def read(self, content: bytes) -> LabelPredictions:
        return LabelPredictions.from_parquet(content)

    def decide(self, new: Answers, old: Answers, champion: str, rule: Rule, data: EvalData) -> Decision:
        found = resampled(cast(LabelPredictions, new), cast(LabelPredictions, old))
        return decide(None, champion=champion, margin=rule.margin, split=data.split, resampled=found)


def task_of(*, multi_label: bool) -> Task:
    """Return the task of a data set or of a recipe."""
    return AnyLabels() if multi_label else OneLabel()


def _evaluate_labels(resources: Resources, model: PortableModel, data: EvalData) -> EvaluatedLabels:
    import torch

    from resnet_core.evaluation.multi_label import MultiLabelSums

    data = resources.fed(data)
    sums, parts = MultiLabelSums(len(data.manifest.class_names), torch.device("cpu")), []
    for rows, probabilities_BK in answers(model.open(resources.device), data, resources.limit):
        labels = rows["label"].astype(np.uint8)
        sums.add(probabilities_BK, torch.from_numpy(labels))
        parts.append(
            LabelPredictions(id=rows["id"].astype(np.int64), label=labels, probability=probabilities_BK.numpy())
        )
    predictions, metrics = LabelPredictions.join(parts), sums.metrics()
    score = Score(
        accuracy=metrics["accuracy"],
        loss=metrics["loss"],
        count=len(predictions),
        data_digest=data.manifest.digest,
        mean_average_precision=metrics[MEAN_AVERAGE_PRECISION],
    )
    return EvaluatedLabels(score=score, predictions=predictions)


def _pairs(confusion: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    labels, predicted = np.nonzero(confusion)
    return np.stack([labels, predicted, confusion[labels, predicted]], axis=1).astype(np.int64)
