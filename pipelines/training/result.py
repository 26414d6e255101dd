"""Result of a trained run: its plots, the score of its best checkpoint, and a version in the registry."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from infra.errors import UserError
from infra.proportions import wilson
from infra.registry.gate import FURTHER, MEAN_AVERAGE_PRECISION
from infra.storage import open_store
from infra.tracking.curves import CurveNames
from infra.tracking.tracker import MetricPoint, Tracker
from pipelines.checkpoint import Checkpoint, RunFolder
from pipelines.config.recipe import Recipe
from pipelines.data.shards.bad_records import QUARANTINE, Quarantine
from pipelines.data.shards.manifest import Manifest
from pipelines.evaluation.model_source import RunModel
from pipelines.evaluation.placement import KEY, InferencePlacement, choose
from pipelines.evaluation.scoring import EvalData, example_images
from pipelines.evaluation.task import task_of
from pipelines.registry.description import bounds, facts
from pipelines.registry.registration import Terms, register_checkpoint
from pipelines.training.data_stalls import data_limit, retries
from resnet_core.plateau import EarlyStopping, held_out
from resnet_core.schedule import total_steps

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from infra.registry.gate import Score

DELIVERY_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Result of a run, also saved as `finished.json`."""

    run_id: str
    step: int  # last step
    accuracy: float  # of the best checkpoint on the test split; of a study's trial, on the validation split
    images: int = 0  # scored for `accuracy`
    best_step: int = 0  # of the best checkpoint
    chosen_on: str = "test"  # split that chose the best checkpoint
    chosen_accuracy: float = 0.0  # of the best checkpoint on that split
    chosen_images: int = 0
    metric: str = "accuracy"  # run.metric, which chose the best checkpoint
    value: float = 0.0  # of the metric, on the split of `accuracy`
    chosen_value: float = 0.0  # of the metric, on the split that chose the checkpoint
    model: str = ""  # models:/NAME/VERSION, or "" if none was registered
    champion: bool = False
    reason: str = ""
    example: str = ""  # URI of a held-out image to try the model on
    data_limit: str = ""  # which stage of the data slowed the run down and what to change; "" if none
    retries: int = 0  # requests to the storage that data tasks repeated
    bad_samples: int = 0  # in quarantine
    stopped_early: str = ""  # where and why early stopping ended the run; "" if it did not
    seconds: float = 0.0

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Outcome:
        return cls(**{name: content[name] for name in cls.__slots__ if name in content})

    def lines(self) -> list[str]:
        """Return lines: which split chose which checkpoint, and its score on the test split."""
        if not self.images:  # finished before this was saved
            return [f"test accuracy {self.accuracy:.2%} after {self.step} steps"]
        interval = wilson(round(self.accuracy * self.images), self.images)
        tested = f"test accuracy    {self.accuracy:.2%} (95 %: {interval}) on {self.images:,} images"
        if self.metric == MEAN_AVERAGE_PRECISION:
            tested = f"test mean average precision {self.value:.2%} on {self.images:,} images"
        where = f"step {self.best_step} of {self.step}"
        measured = (
            []
            if self.metric in ("accuracy", MEAN_AVERAGE_PRECISION)
            else [f"test {self.metric.replace('_', ' ')} {self.value:.2%}"]
        )
        if self.chosen_on == "test":
            line = f"{tested}, at {where}, which the test split itself chose: there is no validation split"
            return [line, *measured]
        found = self.chosen_accuracy if self.metric == "accuracy" else self.chosen_value
        name = "" if self.metric == "accuracy" else f"{self.metric.replace('_', ' ')} "
        chosen = f"{name}{found:.2%} on {self.chosen_images:,} images of the {self.chosen_on} split"
        return [f"best checkpoint  {where}: {chosen}", f"{tested}, scored once", *measured]

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def conclude(
    recipe: Recipe, manifest: Manifest, folder: RunFolder, tracker: Tracker, console: Console, *, scores_test: bool
) -> Outcome:
    """Plot the run, score its best checkpoint once on the test split, and register it.

    The checkpoint is not scored again if nothing is registered, and the test split chose it or `scores_test` is false.
    Then the accuracy is the one that the run recorded.

    Raises:
        UserError: all checkpoints are damaged, or MLflow is unreachable.
    """
    best, newest = folder.best(console.print), folder.newest(console.print)
    if best is None or newest is None:
        raise UserError(f"{folder.store.description} has no undamaged checkpoint: run the same command again")
    steps_per_epoch = manifest.splits[recipe.data.train_split] / recipe.optim.global_batch_size
    _draw(tracker, newest.records, best.scored, manifest, steps_per_epoch)
    metric = recipe.run.metric
    chosen, value = (held_out(best.metrics, name) or 0.0 for name in ("accuracy", metric))
    outcome = partial(
        Outcome,
        run_id=tracker.run_id,
        step=newest.step,
        best_step=best.step,
        chosen_on="test" if recipe.data.held_out == "test" else recipe.data.eval_split,
        chosen_accuracy=chosen,
        chosen_images=manifest.splits[recipe.data.eval_split],
        metric=metric,
        chosen_value=value,
        stopped_early=early_stop(recipe, manifest, newest),
        data_limit=data_limit(newest.records, recipe.optim.global_batch_size),
        retries=retries(newest.records),
        bad_samples=len(Quarantine.from_parquet(newest.files[QUARANTINE])) if QUARANTINE in newest.files else 0,
    )
    data = _test_data(recipe, manifest)
    choice = choose("auto" if recipe.run.use_gpu else False, setting=KEY)  # the run has released its GPUs
    if not recipe.run.register_as:
        if not scores_test or recipe.data.held_out == "test":
            return outcome(accuracy=chosen, images=manifest.splits[recipe.data.eval_split], value=value)
        with console.status("scoring the best checkpoint on the test split"):
            score = _scored(best, data, choice)
        _record(tracker, best.step, score)
        return outcome(accuracy=score.accuracy, images=score.count, value=getattr(score, metric))
    if not tracker.drain(DELIVERY_TIMEOUT_S):
        raise tracker.away()

    with console.status("scoring the best checkpoint on the test split and registering it"):
        run_id, name, terms = tracker.run_id, recipe.run.register_as, Terms(choice=choice)
        version, decision = register_checkpoint(tracker.tracking, best, data, run_id=run_id, name=name, terms=terms)
    if recipe.data.held_out != "test":
        _record(tracker, best.step, version.score)
    folder.store.write("example.png", _png(example_images(data, 1)[0]))
    return outcome(
        accuracy=version.score.accuracy,
        images=version.score.count,
        value=getattr(version.score, metric),
        model=version.uri,
        champion=decision.promote,
        reason=decision.reason,
        example=f"{folder.store.uri}/example.png",
    )


def early_stop(recipe: Recipe, manifest: Manifest, newest: Checkpoint) -> str:
    """Return where and why early stopping ended the run at its newest checkpoint; "" if it did not."""
    config = recipe.schedule
    total = total_steps(config, manifest.splits[recipe.data.train_split], recipe.optim.global_batch_size)
    progress = EarlyStopping.of([(record.step, record.metrics) for record in newest.records], config)
    if newest.step >= total or not progress.ends(config):
        return ""
    metric = config.early_stopping_metric
    improved = "fallen" if metric == "loss" else "risen"
    by = f" by more than {config.early_stopping_min_delta:g}" if config.early_stopping_min_delta else ""
    return (
        f"at step {newest.step:,} of {total:,}: {recipe.data.held_out} {metric} has not {improved}"
        f"{by} in {progress.stale} evaluations (best {progress.best_value:.4f} at step {progress.best_step:,})"
    )


def _test_data(recipe: Recipe, manifest: Manifest) -> EvalData:
    store, crop = open_store(recipe.data.uri), recipe.data.at(recipe.data.image_size)
    return EvalData(store=store, manifest=manifest, crop=crop, split=recipe.data.test_split)


def _scored(checkpoint: Checkpoint, data: EvalData, choice: InferencePlacement) -> Score:
    """Score a checkpoint in fp32, like a registered version."""
    task = task_of(multi_label=data.manifest.multi_label)
    return task.evaluate(choice, RunModel.of(checkpoint), data).score


def _record(tracker: Tracker, step: int, score: Score) -> None:
    """Log the test split's score, at the step of the checkpoint that has it."""
    metrics = {"test/accuracy": score.accuracy, "test/loss": score.loss}
    metrics |= {f"test/{name}": value for name in FURTHER if (value := getattr(score, name)) is not None}
    tracker.log(MetricPoint(step=step, time_ms=time.time_ns() // 1_000_000, metrics=metrics))


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _draw(
    tracker: Tracker,
    records: list[MetricPoint],
    scored: dict[str, Any] | None,
    manifest: Manifest,
    steps_per_epoch: float,
) -> None:
    from infra.plots import training as plots

    for name, figure in plots.curves(records, steps_per_epoch=steps_per_epoch).items():
        tracker.figure(f"plots/{name}.png", figure)
    if scored is None:
        return
    names = manifest.class_names
    for name, figure in task_of(multi_label=manifest.multi_label).figures(scored, names).items():
        tracker.figure(f"plots/{name}.png", figure)
    if not len(scored["images"]):
        return
    columns = zip(scored["images"], scored["labels"], scored["predicted"], scored["probability"], strict=True)
    sheet = [
        plots.Mistake(image=image, label=names[label], predicted=names[predicted], probability=float(probability))
        for image, label, predicted, probability in columns
    ]
    tracker.figure("plots/mistakes.png", plots.mistakes(sheet))


_TOP = 5  # of top5_accuracy, which is always 1 with at most 5 classes
_WAITING, _WRITING = "waiting_for_data/", "writing_checkpoint/"  # sort after test, train and validation


def curves_of(recipe: Recipe, manifest: Manifest) -> CurveNames:
    """Return the names of the run's curves: accuracies and losses come first, constant curves are left out."""
    several = recipe.run.workers[1] > 1
    return CurveNames(
        renamed={"data/": _WAITING, "checkpoint/": _WRITING},
        from_first_value=(_WAITING, f"{_WRITING}retries", "train/data_wait_share"),
        left_out=(
            *(() if several else ("_share_max",)),
            *(() if len(manifest.class_names) > _TOP else ("/top5_accuracy",)),
        ),
    )


def run_note(recipe: Recipe, manifest: Manifest, outcome: Outcome | None = None) -> str:
    """Return the description of a run in MLflow: recipe, data and network; after its end also the result."""
    found = ["Under way."]
    if outcome:
        found = ["\n".join(_result(outcome))]
    if outcome and outcome.model:
        state = "champion" if outcome.champion else "not champion"
        found.append(f"Registered as `{outcome.model}`, {state}: {outcome.reason}")
    return "\n\n".join([*found, facts(recipe, manifest)])


def _result(outcome: Outcome) -> list[str]:
    """Return the accuracy, and which split chose the checkpoint."""
    count = outcome.images
    interval = f" ({bounds(wilson(round(outcome.accuracy * count), count))}, {count:,} images)" if count else ""
    best = f"of the checkpoint of step {outcome.best_step:,}" if outcome.best_step else ""
    lines = [f"**accuracy {outcome.accuracy:.2%}** {best}{interval}"]
    if outcome.metric == MEAN_AVERAGE_PRECISION:
        lines = [f"**mean average precision {outcome.value:.2%}** {best} ({count:,} images)"]
    lines += [f"stopped early {outcome.stopped_early}"] if outcome.stopped_early else []
    alone = (outcome.accuracy, count) == (outcome.chosen_accuracy, outcome.chosen_images)  # no other split was scored
    if alone or outcome.chosen_on == "test":
        return [*lines, f"on the {outcome.chosen_on} split, which also chose the checkpoint"]
    chosen = f"{outcome.chosen_accuracy:.2%} on {outcome.chosen_images:,} images"
    return [*lines, f"on the test split, scored once; the {outcome.chosen_on} split chose the checkpoint ({chosen})"]
