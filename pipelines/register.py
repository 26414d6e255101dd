"""Register a run's best checkpoint: `python pipelines/register.py RUN_FOLDER [--name NAME] [--step N]`.

The alias `champion` moves to the new version if it is not worse than the present champion on the same data.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console

import infra.cluster
from infra.errors import UserError
from infra.gate import Decision, Score, decide
from infra.mlflow_client import Tracking, resolve_tracking
from infra.registry import Candidate, Version, champion, load, promote, register
from infra.storage import open_store
from pipelines import cli
from pipelines.checkpoint import RUN, Checkpoint, RunFolder
from pipelines.data.decode import CropConfig
from pipelines.data.manifest import load_manifest
from pipelines.scoring import EvalData, example_images, score_model
from pipelines.serving.bundle import request_reader

_EXAMPLES = 2  # images of the input example: with one, the export would fix the batch size


def register_checkpoint(
    tracking: Tracking, checkpoint: Checkpoint, data: EvalData, *, run_id: str, name: str
) -> tuple[Version, Decision]:
    """Export a checkpoint, register it as a version of `name`, and let the gate decide on the alias `champion`.

    `data` is the whole split that decides. A checkpoint that has a version already goes through the gate again.

    Raises:
        UserError: the checkpoint is of another data set, or MLflow is not reachable or refuses.
    """
    from pipelines.serving_model import ServedClassifier, recipe_of

    _check_data(checkpoint, data)
    recipe, module = recipe_of(checkpoint), ServedClassifier.from_checkpoint(checkpoint)
    score = _recorded_score(checkpoint, data) or score_model(module.predict, data)
    candidate = Candidate(
        name=name,
        run_id=run_id,
        step=checkpoint.step,
        module=module,
        example=example_images(data, _EXAMPLES),
        score=score,
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
        reader=request_reader(),
    )
    version = register(tracking, candidate)
    decision = _gate(tracking, name, score, data)
    if decision.promote:
        promote(tracking, version)
    return version, decision


def _check_data(checkpoint: Checkpoint, data: EvalData) -> None:
    if checkpoint.data_digest != data.manifest.digest:
        raise UserError(
            f"checkpoint {checkpoint.step} was trained on data set {checkpoint.data_digest[:16]}, "
            f"{data.store.description} holds {data.manifest.name}: name the place of the former with --data"
        )


def _recorded_score(checkpoint: Checkpoint, data: EvalData) -> Score | None:
    """What training measured when it wrote the checkpoint, if it did."""
    accuracy, loss = checkpoint.metrics.get("test/accuracy"), checkpoint.metrics.get("test/loss")
    if accuracy is None or loss is None:
        return None
    count = data.manifest.splits[data.split]
    return Score(accuracy=accuracy, loss=loss, count=count, data_digest=data.manifest.digest)


def _gate(tracking: Tracking, name: str, challenger: Score, data: EvalData) -> Decision:
    """Compare on the challenger's data: the champion's own score if it is of the same, else the champion anew."""
    present = champion(tracking, name)
    if present is None:
        return decide(challenger, None)
    if present.tags.get("data_digest") == challenger.data_digest and present.score.count == challenger.count:
        return decide(challenger, present.score)
    model = load(tracking, present.uri)
    if tuple(model.metadata["class_names"]) != data.manifest.class_names:
        reason = f"the champion {present.uri} tells other classes apart: register under another name"
        return Decision(promote=False, reason=reason)
    crop = CropConfig.of_shown(model.metadata)
    champion_data = EvalData(store=data.store, manifest=data.manifest, crop=crop, split=data.split)
    return decide(challenger, score_model(model.predict, champion_data))


def _run_id(folder: RunFolder) -> str:
    known = folder.read_json(RUN, "run_id")
    if known is None:
        raise UserError(f"{folder.store.description} has no {RUN}: without its MLflow run it cannot be registered")
    return str(known["run_id"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Register a run's best checkpoint, and promote it if it is not worse.")
    parser.add_argument("run", metavar="RUN_FOLDER", help="folder or s3://bucket/prefix of a run")
    parser.add_argument("--name", help="registered model (default: the recipe's run.register_as)")
    parser.add_argument("--step", type=int, help="register the checkpoint of this step instead of the best one")
    parser.add_argument(
        "--data", metavar="URI", help="where the run's data set is now (default: the recipe's data.uri)"
    )
    arguments = parser.parse_args()
    from pipelines.serving_model import find_checkpoint, open_run, recipe_of

    console = Console(soft_wrap=True, highlight=False, markup=False)
    folder = open_run(arguments.run)
    checkpoint = find_checkpoint(folder, arguments.step, console.print)
    recipe = recipe_of(checkpoint)
    name = arguments.name or recipe.run.register_as
    if not name:
        raise UserError(f"the recipe of {arguments.run} has no run.register_as: name the model with --name")
    store = open_store(arguments.data or recipe.data.uri)
    crop = recipe.data.at(recipe.data.image_size)
    data = EvalData(store=store, manifest=load_manifest(store), crop=crop, split=recipe.data.eval_split)
    _check_data(checkpoint, data)
    tracking = resolve_tracking(cli.local_home(recipe.run.home))
    infra.cluster.connect(min_cpus=1)
    with console.status("exporting, comparing, registering"):
        version, decision = register_checkpoint(tracking, checkpoint, data, run_id=_run_id(folder), name=name)
    console.print(f"{version.uri}: checkpoint {checkpoint.step}, accuracy {version.score.accuracy:.4f}")
    console.print(f"{'champion' if decision.promote else 'not champion'}: {decision.reason}")


if __name__ == "__main__":
    cli.run(main)
