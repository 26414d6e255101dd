"""Classify a source of images: print the most probable classes, or write all predictions as Parquet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

import infra.cluster
from infra.errors import USER_ERROR_STATUS, UserError
from infra.interruption import explained
from infra.registry.versions import LoadedModel, fetch
from infra.storage import Store, open_store
from infra.tracking.client import resolve_tracking
from pipelines import cli
from pipelines.cli.progress_bars import PredictBar
from pipelines.config.sections import UseGpu
from pipelines.data.prepare.sources.place import counted
from pipelines.data.tasks.crops import Block
from pipelines.evaluation import TASK_MODULES
from pipelines.evaluation.placement import check, choose
from pipelines.inference.batch_predict import Classification, classify, left_out, predictions
from pipelines.inference.output_files import SUMMARY, Collector, Layout, write_summary
from pipelines.inference.sources import find_images
from pipelines.inference.sources.files import ImageFiles
from pipelines.inference.sources.images import Images, decoded
from pipelines.registry.champion import chosen_model, described

_PRINTED_ROWS = 64  # images at once
_NAMED_BAD = 20  # reported images that are not classified; the column `reason` has all
# Ray's core logs an error for each actor of Ray Data: its arguments may get lost (ray-project/ray issue 53727). This
# process keeps them until the end.
_FALSE_ALARM = b"has constructor arguments in the object store and max_restarts > 0"


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictRequest:
    """Options of `predict.py`: the images, the model, and the destination of the predictions."""

    images: Sequence[str]
    split: str | None = None
    """Split of a data set; None = all splits."""
    model: str | None = None
    """models:/NAME@champion or models:/NAME/VERSION; None = the champion, if there is only one model."""
    home: str = "runs"
    """Folder of MLflow's database, if MLFLOW_TRACKING_URI is not set."""
    out: str = ""
    """Folder or s3://bucket/prefix for Parquet files; "" = print the most probable classes."""
    top: int = 5
    all_probabilities: bool = False
    file_rows: int = 8192
    """Approximate predictions per file."""
    actors: int = 1
    """Maximum number of copies of the model."""
    use_gpu: UseGpu = "auto"


def predict(request: PredictRequest) -> int:
    """Classify the images, and return the exit status: 2 if a file that the user named is not an image.

    Raises:
        UserError: a source or model cannot be opened, or the predictions cannot be written.
    """
    images = find_images(request.images, request.split)
    for note in images.notes if isinstance(images, ImageFiles) else ():
        sys.stderr.write(f"{note}\n")
    tracking = resolve_tracking(request.home)
    if not request.out and not isinstance(images, ImageFiles):
        raise UserError(f"{images.description}: give a folder for the predictions with --out")
    uri = chosen_model(tracking, request.model)
    files = fetch(tracking, uri)
    model = files.open()
    sys.stderr.write(f"model: {described(uri, files.version)}\n")  # the user may have meant another model
    named = [folder.text for folder in images.folders if folder.named] if isinstance(images, ImageFiles) else []
    bad = Unclassified(named=frozenset(named))
    if not request.out:
        print_classes(images, model, request.top, bad)
        return bad.status
    wanted = Classification(
        images=images,
        model=files,  # every actor gets this version, even if the alias moves
        top=request.top,
        all_probabilities=request.all_probabilities,
        file_rows=request.file_rows,
        actors=request.actors,
    )
    write_predictions(wanted, request.use_gpu, open_store(request.out), bad)
    return bad.status


@dataclass(kw_only=True, slots=True)
class Unclassified:
    """Record of the images that are not classified. It reports the first ones, and holds the exit status."""

    named: frozenset[str]  # files that the user named: if one is not classified, the command fails
    count: int = 0
    status: int = 0

    def tell(self, block: Block) -> None:
        for row in np.flatnonzero(block["reason"] != "").tolist():
            path, reason = block["path"][row], block["reason"][row]
            self.count += 1
            if path in self.named:
                self.status = USER_ERROR_STATUS
            if path in self.named or self.count <= _NAMED_BAD:
                verb = "" if reason.startswith("cannot") else "does not decode: "
                sys.stderr.write(f"{'error: ' if path in self.named else ''}{path} {verb}{reason}\n")


def print_classes(images: Images, model: LoadedModel, top: int, bad: Unclassified) -> None:
    """Print the most probable classes of each image, computed in this process."""
    names, thresholds = model.metadata["class_names"], model.metadata.get("thresholds", ())
    console = cli.console()
    for part in images.parts:
        for block in decoded(images, part, model.metadata, _PRINTED_ROWS):
            shown = len(names) if thresholds else top
            found = predictions(block, model.predict, top=shown, all_probabilities=False, thresholds=thresholds)
            for row in np.flatnonzero(found["reason"] == "").tolist():
                console.print("\n".join([found["path"][row], *_lines(found, row, names)]))
            bad.tell(found)


def _lines(found: Block, row: int, names: Sequence[str]) -> list[str]:
    """Return one line for each of the most probable classes; of a multi-label model, for those over their threshold."""
    pairs = zip(found["top_probability"][row].tolist(), found["top_class"][row].tolist(), strict=True)
    if "reached" in found:
        reached = found["reached"][row]
        lines = [f"{chance:8.2%}  {names[number]}" for chance, number in pairs if reached[number]]
        return lines or ["    none  no class reaches its threshold"]
    return [f"{probability:8.2%}  {names[number]}" for probability, number in pairs]


def write_predictions(wanted: Classification, use_gpu: UseGpu, store: Store, bad: Unclassified) -> None:
    """Write the Parquet files that do not exist yet, then the summary."""
    console = cli.console()
    store.check_access(write=True)
    wanted.job().claim(store)
    layout = Layout.of(wanted.images.parts, wanted.file_rows)
    collector = Collector(store=store, layout=layout, class_names=wanted.model.metadata["class_names"])
    missing = layout.missing(store)
    if missing:
        with explained(lambda: _kept(layout, store)):
            infra.cluster.connect(min_cpus=1, modules=TASK_MODULES)
            wanted = replace(wanted, choice=choose(use_gpu))
            check(wanted.choice)
            on = f"{wanted.model.version.uri} on {wanted.choice.description}"
            console.print(f"classifying {wanted.images.description} with {on}")
            with left_out(_FALSE_ALARM), PredictBar(console, total=layout.total, found=layout.written(store)) as bar:
                for block in classify(wanted, layout, missing):
                    bad.tell(block)
                    collector.add(block)
                    bar.classified(len(block["id"]))
            console.print(bar.told)
    elif store.exists(SUMMARY):
        console.print("nothing to do: all predictions are written")
    images, unclassified = write_summary(store, layout)
    note = f", {unclassified:,} of them not classified: see the column reason" if unclassified else ""
    console.print(f"{counted(images, 'image')} in {counted(len(layout.files), 'file')} at {store.description}{note}")


def _kept(layout: Layout, store: Store) -> str:
    """Return the line that is printed after Ctrl-C."""
    return f"interrupted: {layout.written(store):,} of {layout.total:,} images are kept: the same command resumes"
