"""Register a checkpoint as a version of a model, and let the gate decide whether it becomes champion."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console

import infra.cluster
from infra.errors import UserError
from infra.registry.champion import check_movable
from infra.registry.gate import Decision, Rule
from infra.registry.version import Version, read_file
from infra.registry.versions import Candidate, register, registered
from infra.storage import open_store
from infra.tracking.client import Tracking, resolve_tracking
from pipelines import cli
from pipelines.checkpoint import RUN, Checkpoint, RunFolder
from pipelines.config.sections import UseGpu
from pipelines.data.shards.manifest import load_manifest
from pipelines.evaluation import TASK_MODULES
from pipelines.evaluation.label_predictions import EvaluatedLabels
from pipelines.evaluation.model_source import RunModel
from pipelines.evaluation.placement import HERE, InferencePlacement, choose
from pipelines.evaluation.result import Evaluated
from pipelines.evaluation.run_checkpoint import find_checkpoint, open_run, recipe_of
from pipelines.evaluation.scoring import EvalData, example_images
from pipelines.evaluation.task import task_of
from pipelines.registry.bundled_code import request_reader
from pipelines.registry.description import version_note
from pipelines.registry.promotion import PREDICTIONS, SPLIT_TAG, challenge

_EXAMPLES = 2  # images of the input example: with a single one, the export would fix the batch size


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisterRequest:
    """Options of `register.py`."""

    run: str
    """Folder or s3://bucket/prefix of the run."""
    name: str = ""
    """Registered model; "" = the recipe's run.register_as."""
    step: int | None = None
    """Step of the checkpoint; None = the best checkpoint."""
    data: str = ""
    """Current URI of the run's data set; "" = the recipe's data.uri."""
    margin: float | None = None
    """Loss of accuracy that the gate must rule out, 0 to 1; None = the recipe's run.gate_margin."""
    use_gpu: UseGpu = "auto"


class Terms(NamedTuple):
    """Settings of the gate for a checkpoint."""

    margin: float | None = None  # None = the recipe's run.gate_margin
    choice: InferencePlacement = HERE  # where models are scored


_DEFAULT_TERMS = Terms()


def register_checkpoint(
    tracking: Tracking,
    checkpoint: Checkpoint,
    data: EvalData,
    *,
    run_id: str,
    name: str,
    terms: Terms = _DEFAULT_TERMS,
) -> tuple[Version, Decision]:
    """Export a checkpoint, register it as a version of `name`, and let the gate decide on the alias `champion`.

    `data` is the whole split that the gate compares on. A checkpoint that already has a version goes through the gate
    again.

    Raises:
        UserError: the checkpoint was trained on another data set, or MLflow is unreachable or refuses.
    """
    _check_data(checkpoint, data)
    check_movable(tracking, name)
    version = registered(tracking, name=name, run_id=run_id, checkpoint_sha256=checkpoint.sha256)
    kept = read_file(tracking, version, PREDICTIONS) if version else None
    task = task_of(multi_label=data.manifest.multi_label)
    if version and kept:
        predictions = task.read(kept)
    else:
        evaluated = task.evaluate(terms.choice, RunModel.of(checkpoint), data)
        version, predictions = (
            _register(tracking, checkpoint, data, evaluated, run_id=run_id, name=name),
            evaluated.predictions,
        )
    run = recipe_of(checkpoint).run
    margin = run.gate_margin if terms.margin is None else terms.margin
    rule = Rule(margin, run.metric)
    return version, challenge(tracking, version, predictions, data, rule=rule, placement=terms.choice)


def register_run(request: RegisterRequest, console: Console) -> tuple[Version, Decision, str]:
    """Register a checkpoint of a run, and print the device and the accuracy.

    Returns:
        The version, the gate's decision, and `run.home` of the run's recipe.

    Raises:
        UserError: an option is wrong, the run or its data set cannot be read, or as `register_checkpoint`.
    """
    if request.margin is not None and not 0 < request.margin <= 1:
        raise UserError(f"--margin must be above 0 and at most 1, got {request.margin}")
    folder = open_run(request.run)
    checkpoint = find_checkpoint(folder, request.step, console.print)
    recipe = recipe_of(checkpoint)
    name = request.name or recipe.run.register_as
    if not name:
        raise UserError(f"the recipe of {request.run} has no run.register_as: name the model with --name")
    store = open_store(request.data or recipe.data.uri)
    crop = recipe.data.at(recipe.data.image_size)
    data = EvalData(store=store, manifest=load_manifest(store), crop=crop, split=recipe.data.test_split)
    _check_data(checkpoint, data)
    tracking, run_id = resolve_tracking(cli.local_home(recipe.run.home)), _run_id(folder)
    infra.cluster.connect(min_cpus=1, modules=TASK_MODULES)
    placement = choose(request.use_gpu)
    sys.stderr.write(f"scoring on {placement.description}\n")
    with console.status("exporting, comparing, registering"):
        version, decision = register_checkpoint(
            tracking, checkpoint, data, run_id=run_id, name=name, terms=Terms(request.margin, placement)
        )
    score = version.score
    found = f"accuracy {score.accuracy:.4f}"
    if score.mean_average_precision is not None:
        found = f"mean average precision {score.mean_average_precision:.4f}"
    console.print(f"{version.uri}: checkpoint {checkpoint.step}, {found}")
    return version, decision, recipe.run.home


def _register(
    tracking: Tracking,
    checkpoint: Checkpoint,
    data: EvalData,
    evaluated: Evaluated | EvaluatedLabels,
    *,
    run_id: str,
    name: str,
) -> Version:
    """Register a version together with its predictions for the whole split."""
    recipe = recipe_of(checkpoint)
    candidate = Candidate(
        name=name,
        run_id=run_id,
        step=checkpoint.step,
        module=RunModel.of(checkpoint).classifier("cpu"),
        example=example_images(data, _EXAMPLES),
        score=evaluated.score,
        checkpoint_sha256=checkpoint.sha256,
        recipe_digest=recipe.digest,
        metadata={
            "class_names": list(data.manifest.class_names),
            **data.crop.shown,
            "pixels": data.manifest.stored.file_pixels,
            "data_uri": data.store.uri,
            "data_digest": data.manifest.digest,
            "split": data.split,
            "recipe": recipe.name,
            **task_of(multi_label=data.manifest.multi_label).facts(checkpoint.scored),
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
            f"checkpoint {checkpoint.step} was trained on data set {checkpoint.data_digest[:16]}, but "
            f"{data.store.description} holds {data.manifest.name}: give the place of the first one with --data"
        )


def _run_id(folder: RunFolder) -> str:
    known = folder.read_json(RUN, "run_id")
    if known is None:
        raise UserError(f"{folder.store.description} has no {RUN}: without its MLflow run it cannot be registered")
    return str(known["run_id"])
