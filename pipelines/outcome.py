"""What comes of a trained run: plots of the whole of it, and its best checkpoint in the registry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from infra.errors import UserError
from infra.storage import open_store
from infra.tracking import Record, Tracker, Tracking
from pipelines.checkpoint import RunFolder
from pipelines.data.manifest import Manifest
from pipelines.data.quarantine import QUARANTINE, Quarantine
from pipelines.recipe import Recipe
from pipelines.telemetry import data_limit, retries

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

DELIVERY_PATIENCE_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a run; `finished.json` holds the same."""

    run_id: str
    step: int
    accuracy: float
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

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def conclude(
    recipe: Recipe, manifest: Manifest, folder: RunFolder, tracker: Tracker, tracking: Tracking, console: Console
) -> Outcome:
    """Plots of the whole run, and the best checkpoint into the registry."""
    best, newest = folder.best(console.print), folder.newest(console.print)
    if best is None or newest is None:
        raise UserError(f"{folder.store.description} holds no whole checkpoint: run the same command again")
    steps_per_epoch = manifest.splits[recipe.data.train_split] / recipe.optim.global_batch_size
    _draw(tracker, newest.records, best.scored, manifest, steps_per_epoch)
    outcome = partial(
        Outcome,
        run_id=tracker.run_id,
        step=newest.step,
        accuracy=best.metrics["test/accuracy"],
        data_limit=data_limit(newest.records, recipe.optim.global_batch_size),
        retries=retries(newest.records),
        bad_samples=len(Quarantine.from_parquet(newest.files[QUARANTINE])) if QUARANTINE in newest.files else 0,
    )
    if not recipe.run.register_as:
        return outcome()
    if not tracker.drain(DELIVERY_PATIENCE_S):
        raise tracker.away()
    from pipelines.register import register_checkpoint
    from pipelines.scoring import EvalData, example_images

    store, crop = open_store(recipe.data.uri), recipe.data.at(recipe.data.image_size)
    data = EvalData(store=store, manifest=manifest, crop=crop, split=recipe.data.eval_split)
    with console.status("registering the best checkpoint"):
        version, decision = register_checkpoint(
            tracking, best, data, run_id=tracker.run_id, name=recipe.run.register_as
        )
    folder.store.write("example.png", _png(example_images(data, 1)[0]))
    example = f"{folder.store.uri}/example.png"
    return outcome(model=version.uri, champion=decision.promote, reason=decision.reason, example=example)


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
