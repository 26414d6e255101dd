"""Register a run's best checkpoint: `python pipelines/register.py RUN_FOLDER [--name NAME] [--step N]`.

The alias `champion` moves to the new version if the gate finds it no worse than the present champion, image by image on
the same data. `--rollback NAME` makes the champion before champion again, `--promote NAME VERSION` any version, and
`--history NAME` tells who was champion when. Whatever a killed command left half-done, the same command finishes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.interruption import listen

    listen()

from rich.console import Console
from rich.table import Table

import infra.cluster
from infra.champion import check_movable, promote, roll_back, settle
from infra.errors import UserError
from infra.gate import Decision
from infra.mlflow_client import Tracking, resolve_tracking
from infra.registry import Candidate, load, register, registered
from infra.storage import open_store
from infra.version import Version, read_file
from pipelines import cli
from pipelines.checkpoint import RUN, Checkpoint, RunFolder
from pipelines.data.manifest import load_manifest
from pipelines.data.predictions import Predictions
from pipelines.description import version_note
from pipelines.evaluated import Evaluated, evaluate
from pipelines.gatekeeper import PREDICTIONS, SPLIT_TAG, challenge
from pipelines.inference import HERE, Choice, choose
from pipelines.model_source import RunModel
from pipelines.scoring import EvalData, example_images
from pipelines.serving.bundle import request_reader
from pipelines.verdict import promote_command, verdict

_EXAMPLES = 2  # images of the input example: with one, the export would fix the batch size


class Terms(NamedTuple):
    """How a checkpoint is judged."""

    margin: float | None = None  # None = the recipe's run.gate_margin
    choice: Choice = HERE  # where models are scored


_USUAL = Terms()


def register_checkpoint(
    tracking: Tracking,
    checkpoint: Checkpoint,
    data: EvalData,
    *,
    run_id: str,
    name: str,
    terms: Terms = _USUAL,
) -> tuple[Version, Decision]:
    """Export a checkpoint, register it as a version of `name`, and let the gate decide on the alias `champion`.

    `data` is the whole split that decides. A checkpoint that has a version already goes through the gate again.

    Raises:
        UserError: the checkpoint is of another data set, or MLflow is not reachable or refuses.
    """
    from pipelines.serving_model import recipe_of

    _check_data(checkpoint, data)
    check_movable(tracking, name)
    version = registered(tracking, name=name, run_id=run_id, checkpoint_sha256=checkpoint.sha256)
    kept = read_file(tracking, version, PREDICTIONS) if version else None
    if version and kept:
        answers = Predictions.from_parquet(kept)
    else:
        evaluated = evaluate(terms.choice, RunModel.of(checkpoint), data)
        version, answers = (
            _register(tracking, checkpoint, data, evaluated, run_id=run_id, name=name),
            evaluated.predictions,
        )
    margin = recipe_of(checkpoint).run.gate_margin if terms.margin is None else terms.margin
    return version, challenge(tracking, version, answers, data, margin=margin, choice=terms.choice)


def _register(
    tracking: Tracking, checkpoint: Checkpoint, data: EvalData, evaluated: Evaluated, *, run_id: str, name: str
) -> Version:
    """A version, with its answers to the whole split."""
    from pipelines.serving_model import ServedClassifier, recipe_of

    recipe = recipe_of(checkpoint)
    candidate = Candidate(
        name=name,
        run_id=run_id,
        step=checkpoint.step,
        module=ServedClassifier.from_checkpoint(checkpoint),
        example=example_images(data, _EXAMPLES),
        score=evaluated.score,
        checkpoint_sha256=checkpoint.sha256,
        recipe_digest=recipe.digest,
        metadata={
            "class_names": list(data.manifest.class_names),
            **data.crop.shown,
            "data_uri": data.store.uri,
            "data_digest": data.manifest.digest,
            "split": data.split,
            "recipe": recipe.name,
        },
        tags={SPLIT_TAG: data.split},
        files={PREDICTIONS: evaluated.predictions.to_parquet()},
        reader=request_reader(),
        description=version_note(recipe, data.manifest, evaluated, data.split, checkpoint.step),
    )
    return register(tracking, candidate)


def _check_data(checkpoint: Checkpoint, data: EvalData) -> None:
    if checkpoint.data_digest != data.manifest.digest:
        raise UserError(
            f"checkpoint {checkpoint.step} was trained on data set {checkpoint.data_digest[:16]}, "
            f"{data.store.description} holds {data.manifest.name}: name the place of the former with --data"
        )


def _run_id(folder: RunFolder) -> str:
    known = folder.read_json(RUN, "run_id")
    if known is None:
        raise UserError(f"{folder.store.description} has no {RUN}: without its MLflow run it cannot be registered")
    return str(known["run_id"])


def main() -> None:
    arguments = _parser().parse_args()
    console = cli.console()
    tracking = resolve_tracking(arguments.home)
    if arguments.rollback:
        out, version = roll_back(tracking, arguments.rollback)
        console.print(f"champion: {version.uri}, in place of version {out}")
    elif arguments.promote:
        name, number = arguments.promote
        check_movable(tracking, name)  # before the model is downloaded and run
        version = load(tracking, f"models:/{name}/{number}").version
        promote(tracking, version)
        console.print(f"champion: {version.uri}")
    elif arguments.history:
        console.print(_history(tracking, arguments.history))
    elif arguments.run:
        _register_run(arguments, console)
    else:
        raise UserError("name the folder of a run, or --rollback NAME, --promote NAME VERSION or --history NAME")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Register a run's best checkpoint, and promote it if it is not worse.")
    parser.add_argument("run", nargs="?", metavar="RUN_FOLDER", help="folder or s3://bucket/prefix of a run")
    parser.add_argument("--name", help="registered model (default: the recipe's run.register_as)")
    parser.add_argument("--step", type=int, help="register the checkpoint of this step instead of the best one")
    told = "where the run's data set is now (default: the recipe's data.uri)"
    parser.add_argument("--data", metavar="URI", help=told)
    told = "loss of accuracy that must be excluded, 0 to 1 (default: the recipe's run.gate_margin)"
    parser.add_argument("--margin", type=float, help=told)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--rollback", metavar="NAME", help="make the champion before champion again")
    instead.add_argument("--promote", nargs=2, metavar=("NAME", "VERSION"), help="make a version champion, ungated")
    instead.add_argument("--history", metavar="NAME", help="who was champion when")
    told = "folder of MLflow's database without MLFLOW_TRACKING_URI, for those three (a run knows its own)"
    parser.add_argument("--home", default="runs", help=told)
    cli.add_use_gpu(parser)
    return parser


def _register_run(arguments: argparse.Namespace, console: Console) -> None:
    from pipelines.serving_model import find_checkpoint, open_run, recipe_of

    if arguments.margin is not None and not 0 < arguments.margin <= 1:
        raise UserError(f"--margin must be above 0 and at most 1, got {arguments.margin}")
    folder = open_run(arguments.run)
    checkpoint = find_checkpoint(folder, arguments.step, console.print)
    recipe = recipe_of(checkpoint)
    name = arguments.name or recipe.run.register_as
    if not name:
        raise UserError(f"the recipe of {arguments.run} has no run.register_as: name the model with --name")
    store = open_store(arguments.data or recipe.data.uri)
    crop = recipe.data.at(recipe.data.image_size)
    data = EvalData(store=store, manifest=load_manifest(store), crop=crop, split=recipe.data.test_split)
    _check_data(checkpoint, data)
    tracking, run_id = resolve_tracking(cli.local_home(recipe.run.home)), _run_id(folder)
    infra.cluster.connect(min_cpus=1)
    choice = choose(cli.use_gpu(arguments))
    print(f"scoring on {choice.told}", file=sys.stderr)
    with console.status("exporting, comparing, registering"):
        version, decision = register_checkpoint(
            tracking, checkpoint, data, run_id=run_id, name=name, terms=Terms(arguments.margin, choice)
        )
    console.print(f"{version.uri}: checkpoint {checkpoint.step}, accuracy {version.score.accuracy:.4f}")
    console.print(verdict(version.uri, champion=decision.promote, reason=decision.reason))
    if not decision.promote:
        console.print(f"promote     {promote_command(version.uri, recipe.run.home)}")


def _history(tracking: Tracking, name: str) -> Table:
    table = Table("when", "champion", "over", "by", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for move in settle(tracking, name).moves:
        over = f"version {move.over}" if move.over else "none"
        table.add_row(move.time, f"version {move.version}", over, move.why)
    return table


if __name__ == "__main__":
    cli.run(main)
