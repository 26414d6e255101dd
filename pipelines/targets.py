"""What can be evaluated: a run's checkpoint or a registered model, and the data that it is scored on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.errors import UserError
from infra.mlflow_client import resolve_tracking
from infra.registry import load
from infra.storage import open_store
from pipelines.checkpoint import Checkpoint, Warn
from pipelines.data.decode import CropConfig
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.recipe import Recipe, build_recipe
from pipelines.scoring import EvalData, Predict

MODELS = "models:/"
CROP_KEYS = ("data.image_size", "data.eval_resize")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the user asked for; None = as in training."""

    target: str
    """A run's folder, models:/NAME@ALIAS or models:/NAME/VERSION."""
    step: int | None = None
    """Of a run: the checkpoint's; None = the best one."""
    data: str | None = None
    """URI of the data set."""
    split: str | None = None
    home: str = "runs"
    """Folder of MLflow's database without MLFLOW_TRACKING_URI."""
    crop: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of `CROP_KEYS`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What is scored, and on what."""

    description: str
    predict: Predict
    class_names: tuple[str, ...]
    """In the order of its outputs."""
    data: EvalData


def open_target(request: Request, warn: Warn) -> Target:
    """Load the model, on the GPU where a checkpoint finds one, and find its data.

    Raises:
        UserError: no such model or data set, or their classes or image sizes differ.
    """
    for key in request.crop:
        if key not in CROP_KEYS:
            raise UserError(f"--set {key}: evaluate.py takes {' and '.join(CROP_KEYS)} only")
    target = _registered(request) if request.target.startswith(MODELS) else _of_run(request, warn)
    target.data.manifest.require_split(target.data.split)
    _check_classes(target)
    return target


def _of_run(request: Request, warn: Warn) -> Target:
    import torch

    from pipelines.serving_model import ServedClassifier, find_checkpoint, open_run, recipe_of
    from resnet_core.compute import pick_device

    checkpoint = find_checkpoint(open_run(request.target), request.step, warn)
    recipe = recipe_of(checkpoint)
    data = _data(request, recipe.data.uri, recipe.data.eval_split, recipe.data)
    classifier = ServedClassifier.from_checkpoint(checkpoint).to(pick_device(use_gpu=torch.cuda.is_available()))
    return Target(
        description=f"{request.target}, step {checkpoint.step}",
        predict=classifier.predict,
        class_names=_class_names(checkpoint, recipe, data.manifest),
        data=data,
    )


def _registered(request: Request) -> Target:
    if request.step is not None:
        raise UserError("--step is for a run's folder: name a version of the registered model instead")
    model = load(resolve_tracking(request.home), request.target)
    about = model.metadata
    size = about["image_size"]
    data = _data(
        request, about["data_uri"], about["split"], CropConfig(image_size=size, eval_resize=about["eval_resize"])
    )
    if data.crop.image_size != size:
        raise UserError(f"--set data.image_size: {model.version.uri} was exported for {size}x{size} pixels")
    return Target(
        description=model.version.uri, predict=model.predict, class_names=tuple(about["class_names"]), data=data
    )


def _data(request: Request, uri: str, split: str, crop: CropConfig) -> EvalData:
    values = {"uri": "none", "image_size": crop.image_size, "eval_resize": crop.eval_resize}
    wanted = build_recipe({"data": values}, request.crop, where="--set").data
    store = open_store(request.data or uri)
    return EvalData(
        store=store,
        manifest=load_manifest(store),
        crop=wanted.at(wanted.image_size),
        split=request.split or split,
    )


def _class_names(checkpoint: Checkpoint, recipe: Recipe, manifest: Manifest) -> tuple[str, ...]:
    """Those of the data set that the checkpoint was trained on: `manifest`, or the one that the recipe names."""
    if manifest.digest == checkpoint.data_digest:
        return manifest.class_names
    trained_on = load_manifest(open_store(recipe.data.uri))
    if trained_on.digest != checkpoint.data_digest:
        raise UserError(
            f"checkpoint {checkpoint.step} was trained on data set {checkpoint.data_digest[:16]}, which is no longer "
            f"at {recipe.data.uri}, so its classes are not known: name the data set's new place with --data"
        )
    return trained_on.class_names


def _check_classes(target: Target) -> None:
    mine, theirs = target.class_names, target.data.manifest.class_names
    if mine == theirs:
        return
    pairs = zip(mine, theirs, strict=False)
    first = next((f"; {left!r} is {right!r} there" for left, right in pairs if left != right), "")
    raise UserError(
        f"{target.description} knows {len(mine)} classes, data set {target.data.manifest.name} has {len(theirs)} "
        f"and not the same{first}: score it on a data set of its own classes"
    )
