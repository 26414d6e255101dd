"""What comes of a trained run: plots of the whole of it, and its best checkpoint in the registry."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from infra.errors import UserError
from infra.proportions import wilson
from infra.storage import open_store
from infra.tracking import Record, Tracker
from pipelines.checkpoint import Checkpoint, RunFolder
from pipelines.data.manifest import Manifest
from pipelines.data.quarantine import QUARANTINE, Quarantine
from pipelines.inference import KEY, Choice, choose
from pipelines.recipe import Recipe
from pipelines.telemetry import data_limit, retries
from resnet_core.reaction import held_out

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from infra.gate import Score
    from pipelines.scoring import EvalData

DELIVERY_PATIENCE_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a run; `finished.json` holds the same."""

    run_id: str
    step: int  # the last one
    accuracy: float  # of the best checkpoint on the test split; of a study's trial, on the validation split
    images: int = 0  # that `accuracy` is of
    best_step: int = 0  # of the best checkpoint
    chosen_on: str = "test"  # split that chose it; "test" where the test split itself did
    chosen_accuracy: float = 0.0  # on that split
    chosen_images: int = 0
    model: str = ""  # models:/NAME/VERSION, or "" if none was registered
    champion: bool = False
    reason: str = ""
    example: str = ""  # URI of a held-out picture to try the model on
    data_limit: str = ""  # which stage of the data held the run up and what to change, or "" if none did
    retries: int = 0  # requests to the storage that data tasks had to repeat
    bad_samples: int = 0  # in quarantine
    seconds: float = 0.0

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Outcome:
        return cls(**{name: content[name] for name in cls.__slots__ if name in content})

    def lines(self) -> list[str]:
        """Say which checkpoint was chosen on which split, and what it scores on the test split."""
        if not self.images:  # finished before runs kept this
            return [f"test accuracy {self.accuracy:.2%} after {self.step} steps"]
        interval = wilson(round(self.accuracy * self.images), self.images)
        tested = f"test accuracy    {self.accuracy:.2%} (95 %: {interval}) on {self.images:,} images"
        where = f"step {self.best_step} of {self.step}"
        if self.chosen_on == "test":
            return [f"{tested}, at {where}, which the test split itself chose: there is no validation split"]
        chosen = f"{self.chosen_accuracy:.2%} on {self.chosen_images:,} images of the {self.chosen_on} split"
        return [f"best checkpoint  {where}: {chosen}", f"{tested}, scored once"]

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def conclude(
    recipe: Recipe, manifest: Manifest, folder: RunFolder, tracker: Tracker, console: Console, *, scores_test: bool
) -> Outcome:
    """Draw the whole run, score the best checkpoint on the test split, once, and register it.

    Where the test split has chosen the checkpoint itself, or `scores_test` is false and nothing is registered, the
    accuracy is the one that the run recorded.
    """
    best, newest = folder.best(console.print), folder.newest(console.print)
    if best is None or newest is None:
        raise UserError(f"{folder.store.description} holds no whole checkpoint: run the same command again")
    steps_per_epoch = manifest.splits[recipe.data.train_split] / recipe.optim.global_batch_size
    _draw(tracker, newest.records, best.scored, manifest, steps_per_epoch)
    chosen = held_out(best.metrics, "accuracy") or 0.0
    outcome = partial(
        Outcome,
        run_id=tracker.run_id,
        step=newest.step,
        best_step=best.step,
        chosen_on="test" if recipe.data.held_out == "test" else recipe.data.eval_split,
        chosen_accuracy=chosen,
        chosen_images=manifest.splits[recipe.data.eval_split],
        data_limit=data_limit(newest.records, recipe.optim.global_batch_size),
        retries=retries(newest.records),
        bad_samples=len(Quarantine.from_parquet(newest.files[QUARANTINE])) if QUARANTINE in newest.files else 0,
    )
    data = _test_data(recipe, manifest)
    choice = choose("auto" if recipe.run.use_gpu else False, setting=KEY)  # the run's GPUs are free by now
    if not recipe.run.register_as:
        if not scores_test or recipe.data.held_out == "test":
            return outcome(accuracy=chosen, images=manifest.splits[recipe.data.eval_split])
        with console.status("scoring the best checkpoint on the test split"):
            score = _scored(best, data, choice)
        _record(tracker, best.step, score)
        return outcome(accuracy=score.accuracy, images=score.count)
    if not tracker.drain(DELIVERY_PATIENCE_S):
        raise tracker.away()
    from pipelines.register import Terms, register_checkpoint
    from pipelines.scoring import example_images

    with console.status("scoring the best checkpoint on the test split and registering it"):
        version, decision = register_checkpoint(
            tracker.tracking,
            best,
            data,
            run_id=tracker.run_id,
            name=recipe.run.register_as,
            terms=Terms(choice=choice),
        )
    if recipe.data.held_out != "test":
        _record(tracker, best.step, version.score)
    folder.store.write("example.png", _png(example_images(data, 1)[0]))
    return outcome(
        accuracy=version.score.accuracy,
        images=version.score.count,
        model=version.uri,
        champion=decision.promote,
        reason=decision.reason,
        example=f"{folder.store.uri}/example.png",
    )


def _test_data(recipe: Recipe, manifest: Manifest) -> EvalData:
    from pipelines.scoring import EvalData

    store, crop = open_store(recipe.data.uri), recipe.data.at(recipe.data.image_size)
    return EvalData(store=store, manifest=manifest, crop=crop, split=recipe.data.test_split)


def _scored(checkpoint: Checkpoint, data: EvalData, choice: Choice) -> Score:
    """Score a checkpoint in fp32, as a registered version is scored."""
    from pipelines.evaluated import evaluate
    from pipelines.model_source import RunModel

    return evaluate(choice, RunModel.of(checkpoint), data).score


def _record(tracker: Tracker, step: int, score: Score) -> None:
    """Log the test split's score, at the step of the checkpoint that has it."""
    metrics = {"test/accuracy": score.accuracy, "test/loss": score.loss}
    tracker.log(Record(step=step, time_ms=time.time_ns() // 1_000_000, metrics=metrics))


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _draw(
    tracker: Tracker, records: list[Record], scored: dict[str, Any] | None, manifest: Manifest, steps_per_epoch: float
) -> None:
    from infra import plots

    for name, figure in plots.curves(records, steps_per_epoch=steps_per_epoch).items():
        tracker.figure(f"plots/{name}.png", figure)
    if scored is None:
        return
    names = manifest.class_names
    few = "confusion" in scored  # see pipelines.sink.details
    confusion = plots.confusion(scored["confusion"], names) if few else plots.confusion_of_pairs(scored["pairs"], names)
    tracker.figure("plots/confusion.png", confusion)
    columns = zip(scored["images"], scored["labels"], scored["predicted"], scored["probability"], strict=True)
    sheet = [
        plots.Mistake(image=image, label=names[label], predicted=names[predicted], probability=float(probability))
        for image, label, predicted, probability in columns
    ]
    tracker.figure("plots/mistakes.png", plots.mistakes(sheet))
