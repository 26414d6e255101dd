"""Classify pictures: `python pipelines/predict.py IMAGE… [--model models:/NAME@champion] [--out FOLDER]`.

IMAGE is a file, a folder, or s3://bucket/prefix; or, alone, a data set that prepare.py wrote, or Parquet with an image
column. The most probable classes are printed. With --out they become Parquet there, computed through Ray; the same
command goes on where it was killed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.interruption import listen

    listen()

import numpy as np

import infra.cluster
from infra.errors import USER_ERROR_STATUS, UserError
from infra.interruption import explained
from infra.mlflow_client import resolve_tracking
from infra.registry import CHAMPION, LoadedModel, fetch
from infra.stderr import left_out
from infra.storage import Store, open_store
from pipelines import cli
from pipelines.chosen_model import chosen_model, described
from pipelines.classification import Classification, classify, predictions
from pipelines.data.decode import CropConfig
from pipelines.data.prediction_files import SUMMARY, Collector, Layout, write_summary
from pipelines.data.progress import PredictBar
from pipelines.data.sources.place import counted
from pipelines.data.task import Block
from pipelines.data.unlabelled.files import ImageFiles
from pipelines.data.unlabelled.find import find_images
from pipelines.data.unlabelled.images import Images, decoded
from pipelines.inference import check, choose

if TYPE_CHECKING:
    from pipelines.inference import UseGpu

_PRINTED_ROWS = 64  # images at once
_NAMED_BAD = 20  # lines for images that are not classified; the column reason has all
_ACTORS = os.cpu_count() or 1
# Ray's core says of each actor of Ray Data, as an error, that its arguments may get lost (ray-project/ray issue 53727).
# This process holds them to the end.
_FALSE_ALARM = b"has constructor arguments in the object store and max_restarts > 0"


def main() -> int:
    arguments = _parser().parse_args()
    for name in ("top", "actors", "file_rows"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    images = find_images(arguments.images, arguments.split)
    for note in images.notes if isinstance(images, ImageFiles) else ():
        print(note, file=sys.stderr)
    tracking = resolve_tracking(arguments.home)
    if not arguments.out and not isinstance(images, ImageFiles):
        raise UserError(f"{images.description}: say with --out where the predictions go")
    uri = chosen_model(tracking, arguments.model)
    files = fetch(tracking, uri)
    model = files.open()
    print(f"model: {described(uri, files.version)}", file=sys.stderr)  # whoever named none may mean another
    named = [folder.text for folder in images.folders if folder.named] if isinstance(images, ImageFiles) else []
    bad = _Bad(named=frozenset(named))
    if not arguments.out:
        _print(images, model, arguments.top, bad)
        return bad.status
    wanted = Classification(
        images=images,
        model=files,  # every actor gets the same, wherever the alias goes
        top=arguments.top,
        all_probabilities=arguments.all,
        file_rows=arguments.file_rows,
        actors=arguments.actors,
    )
    _write(wanted, cli.use_gpu(arguments), open_store(arguments.out), bad)
    return bad.status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Print the most probable classes of pictures, or write them as Parquet."
    )
    told = "image file, folder or s3://bucket/prefix of them; or one data set, or one place with Parquet"
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=told)
    told = f"models:/NAME@{CHAMPION} or models:/NAME/VERSION (default: the champion, where there is one model)"
    parser.add_argument("--model", metavar="URI", help=told)
    parser.add_argument("--top", type=int, default=5, help="classes to print or write (default: 5)")
    parser.add_argument("--out", metavar="URI", help="write Parquet to this folder or s3://bucket/prefix")
    parser.add_argument("--all", action="store_true", help="write the probabilities of all classes as well")
    told = "predictions in a file, about: a kill costs those of the files that it leaves unfinished (default: 8192)"
    parser.add_argument("--file-rows", type=int, default=8192, metavar="N", help=told)
    parser.add_argument("--split", help="of a data set (default: all of it)")
    parser.add_argument(
        "--actors",
        type=int,
        default=_ACTORS,
        metavar="N",
        help=f"copies of the model at most, one CPU each, or one GPU (default: {_ACTORS})",
    )
    cli.add_use_gpu(parser)
    parser.add_argument("--home", default="runs", help="folder of MLflow's database without MLFLOW_TRACKING_URI")
    return parser


@dataclass(kw_only=True, slots=True)
class _Bad:
    """Images that are not classified: a line each for the first, and the status of the command."""

    named: frozenset[str]  # files that the user named: one of these makes it fail
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
                print(f"{'error: ' if path in self.named else ''}{path} {verb}{reason}", file=sys.stderr)


def _print(images: Images, model: LoadedModel, top: int, bad: _Bad) -> None:
    """The most probable classes of each picture, computed in this process."""
    crop, names = CropConfig.of_shown(model.metadata), model.metadata["class_names"]
    console = cli.console()
    for part in images.parts:
        for block in decoded(images, part, crop, _PRINTED_ROWS):
            found = predictions(block, model.predict, top=top, all_probabilities=False)
            for row in np.flatnonzero(found["reason"] == "").tolist():
                console.print("\n".join([found["path"][row], *_lines(found, row, names)]))
            bad.tell(found)


def _lines(found: Block, row: int, names: Sequence[str]) -> list[str]:
    """One line for each of the most probable classes."""
    pairs = zip(found["top_probability"][row].tolist(), found["top_class"][row].tolist(), strict=True)
    return [f"{probability:8.2%}  {names[number]}" for probability, number in pairs]


def _write(wanted: Classification, use_gpu: UseGpu, store: Store, bad: _Bad) -> None:
    """Parquet, as far as it is not there yet."""
    console = cli.console()
    store.check_access(write=True)
    wanted.job().claim(store)
    layout = Layout.of(wanted.images.parts, wanted.file_rows)
    collector = Collector(store=store, layout=layout, class_names=wanted.model.metadata["class_names"])
    missing = layout.missing(store)
    if missing:
        with explained(lambda: _kept(layout, store)):
            infra.cluster.connect(min_cpus=1)
            wanted = replace(wanted, choice=choose(use_gpu))
            check(wanted.choice)
            on = f"{wanted.model.version.uri} on {wanted.choice.told}"
            console.print(f"classifying {wanted.images.description} with {on}")
            with left_out(_FALSE_ALARM), PredictBar(console, total=layout.total, found=layout.written(store)) as bar:
                for block in classify(wanted, layout, missing):
                    bad.tell(block)
                    collector.add(block)
                    bar.classified(len(block["id"]))
            console.print(bar.told)
    elif store.exists(SUMMARY):
        console.print("nothing to do: it is finished")
    images, unclassified = write_summary(store, layout)
    told = f", {unclassified:,} of them not classified: see the column reason" if unclassified else ""
    console.print(f"{counted(images, 'image')} in {counted(len(layout.files), 'file')} at {store.description}{told}")


def _kept(layout: Layout, store: Store) -> str:
    """The line after a Ctrl-C."""
    return f"interrupted: {layout.written(store):,} of {layout.total:,} images are kept: the same command resumes"


if __name__ == "__main__":
    cli.run(main)
