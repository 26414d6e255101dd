"""Open what `evaluate.py` scores: checkpoints of runs and registered models, alone, as a pair, or as an ensemble."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.errors import UserError
from infra.registry.versions import fetch
from infra.storage import open_store
from infra.tracking.client import resolve_tracking
from pipelines.checkpoint import Checkpoint, Warn
from pipelines.config.crop import SHOWN, CropConfig
from pipelines.config.paths import shown
from pipelines.config.recipe import Recipe, build_recipe
from pipelines.data.shards.manifest import Manifest, load_manifest
from pipelines.evaluation.label_predictions import thresholds_of
from pipelines.evaluation.model_source import Ensemble, RunModel, VersionModel
from pipelines.evaluation.placement import PortableModel
from pipelines.evaluation.run_checkpoint import find_checkpoint, open_run, recipe_of
from pipelines.evaluation.scoring import EvalCrops, EvalData

MODELS = "models:/"
SIZE_KEY, RESIZE_KEY = "data.image_size", "data.eval_resize"
CROP_KEYS = tuple(f"data.{name}" for name in SHOWN)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Options of `evaluate.py`; None = as in training."""

    targets: tuple[str, ...]
    """Runs' folders, models:/NAME@ALIAS or models:/NAME/VERSION."""
    steps: tuple[int, ...] = ()
    """Steps of the checkpoints to score, for every run; empty = the run's best checkpoint."""
    data: str | None = None
    """URI of the data set."""
    split: str | None = None
    ensemble: bool = False
    """Score all targets as one model; else one target is scored, or two are compared."""
    home: str = "runs"
    """Folder of MLflow's database, if MLFLOW_TRACKING_URI is not set."""
    views: EvalCrops = field(default_factory=EvalCrops)
    size: int | None = None
    """Side of the crop in pixels; the shorter side of the resized image changes in proportion."""
    crop: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of `CROP_KEYS`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A model and the data that it is scored on."""

    description: str
    model: PortableModel
    class_names: tuple[str, ...]
    """Class names in the order of the model's outputs."""
    data: EvalData
    multi_label: bool = False
    thresholds: tuple[float, ...] = ()
    """Of a multi-label model: the probability from which on it answers each class; empty = the model has none."""


def open_targets(request: Request, warn: Warn) -> list[Target]:
    """Read the models and find their data: one target, or two to compare.

    Raises:
        UserError: there is no such model or data set, classes or image sizes differ, or the model cannot use the crops.
    """
    _check_request(request)
    members = [_open(request, target, step, warn) for target, step in _chosen(request)]
    for member in members:
        member.data.manifest.require_split(member.data.split)
        _check_labels(member)
        _check_classes(member)
        _check_views(member)
    _check_same_images(members)
    return [_together(members)] if request.ensemble and len(members) > 1 else members


def _chosen(request: Request) -> list[tuple[str, int | None]]:
    """Return every target with its step; the step is None for a best checkpoint and for a registered version."""
    chosen: list[tuple[str, int | None]] = []
    for target in request.targets:
        steps = () if target.startswith(MODELS) else request.steps
        chosen += [(target, step) for step in steps or (None,)]
    if len(chosen) > 2 and not request.ensemble:  # noqa: PLR2004 - one is scored, two are compared
        raise UserError(f"{len(chosen)} models: name one to score, two to compare, or score all as one with --ensemble")
    return chosen


def _open(request: Request, target: str, step: int | None, warn: Warn) -> Target:
    return _registered(request, target) if target.startswith(MODELS) else _of_run(request, target, step, warn)


def _check_request(request: Request) -> None:
    for key in request.crop:
        if key not in CROP_KEYS:
            raise UserError(f"--set {key}: evaluate.py takes {', '.join(CROP_KEYS)} only")
    if request.steps and all(target.startswith(MODELS) for target in request.targets):
        raise UserError("--step is for a run's folder: name a version of the registered model instead")
    if request.size is not None and request.size < 1:
        raise UserError(f"--size must be at least 1, got {request.size}")
    if request.size is not None and SIZE_KEY in request.crop:
        raise UserError(f"--size and --set {SIZE_KEY} set the same value: give only one of them")
    if request.views.scales and not request.views.whole:
        raise UserError(f"--scales is for --views multi_scale and multi_scale_flip, not {request.views.name}")
    if min(request.views.scales, default=1) < 1:
        raise UserError(f"--scales must be at least 1, got {min(request.views.scales)}")


def _of_run(request: Request, target: str, step: int | None, warn: Warn) -> Target:
    checkpoint = find_checkpoint(open_run(target), step, warn)
    recipe = recipe_of(checkpoint)
    data = _data(request, recipe.data.uri, recipe.data.test_split, recipe.data)
    return Target(
        description=f"{target}, step {checkpoint.step}",
        model=RunModel.of(checkpoint, dense_for=data.crop.image_size if data.views.whole else 0),
        class_names=_class_names(checkpoint, recipe, data.manifest),
        data=data,
        multi_label=recipe.model.multi_label,
        thresholds=thresholds_of(checkpoint.scored),
    )


def _registered(request: Request, target: str) -> Target:
    files = fetch(resolve_tracking(request.home), target)
    about, uri = files.metadata, files.version.uri
    size = about["image_size"]
    if request.views.whole:
        raise UserError(
            f"--views {request.views.name}: {uri} was exported for {size}x{size} pixels: give its run's folder instead"
        )
    data = _data(request, about["data_uri"], about["split"], CropConfig.of_shown(about))
    if data.crop.image_size != size:
        asked = f"--set {SIZE_KEY}" if request.size is None else "--size"
        raise UserError(f"{asked}: {uri} was exported for {size}x{size} pixels")
    names = tuple(about["class_names"])
    thresholds = tuple(about.get("thresholds", ()))
    return Target(
        description=uri,
        model=VersionModel(files=files),
        class_names=names,
        data=data,
        multi_label=bool(thresholds),
        thresholds=thresholds,
    )


def _data(request: Request, uri: str, split: str, trained: CropConfig) -> EvalData:
    crop = trained.at(request.size or trained.image_size)
    wanted = build_recipe({"data": {"uri": "none", **crop.shown}}, request.crop, where="--set").data
    store = open_store(request.data or uri)
    return EvalData(
        store=store,
        manifest=load_manifest(store),
        crop=wanted.at(wanted.image_size),
        split=request.split or split,
        views=request.views,
    )


def _check_labels(target: Target) -> None:
    manifest = target.data.manifest
    if target.multi_label != manifest.multi_label:
        several, one = "any number of classes per image", "one class per image"
        answers, has = (several, one) if target.multi_label else (one, several)
        raise UserError(
            f"{target.description} answers with {answers}, data set {manifest.name} has {has}: "
            "name a data set of the model's kind with --data"
        )


def _check_views(target: Target) -> None:
    crop = target.data.crop
    if target.data.views.name == "ten_crop" and crop.eval_resize <= crop.image_size:
        raise UserError(
            f"--views ten_crop: {target.description} takes crops of {crop.image_size} pixels from images of "
            f"{crop.eval_resize}, so all would be the same: give a larger --set {RESIZE_KEY}"
        )


def _check_same_images(members: list[Target]) -> None:
    for one, other in itertools.pairwise(members):
        if one.data.manifest.digest != other.data.manifest.digest or one.data.split != other.data.split:
            raise UserError(
                f"{one.description} and {other.description} were evaluated on {_place(one)} and {_place(other)}: "
                "name one with --data and --split"
            )


def _together(members: list[Target]) -> Target:
    """Return the ensemble of all members. Raises UserError unless all members use the same preprocessing."""
    for one, other in itertools.pairwise(members):
        mine, theirs = one.data.crop.shown, other.data.crop.shown
        for name in SHOWN:
            if mine[name] != theirs[name]:
                raise UserError(
                    f"data.{name} is {mine[name]} for {one.description}, {theirs[name]} for {other.description}: "
                    "set it for all of them with --set"
                )
    return Target(
        description="ensemble of " + "; ".join(member.description for member in members),
        model=Ensemble(members=tuple(member.model for member in members)),
        class_names=members[0].class_names,
        data=members[0].data,
        multi_label=members[0].multi_label,
    )


def _place(target: Target) -> str:
    return f"split {target.data.split} of {target.data.manifest.name}"


def _class_names(checkpoint: Checkpoint, recipe: Recipe, manifest: Manifest) -> tuple[str, ...]:
    """Return the class names of the data set that was trained on, which is `manifest` or the recipe's data set."""
    if manifest.digest == checkpoint.data_digest:
        return manifest.class_names
    trained_on = load_manifest(open_store(recipe.data.uri))
    if trained_on.digest != checkpoint.data_digest:
        raise UserError(
            f"checkpoint {checkpoint.step} was trained on data set {checkpoint.data_digest[:16]}, which is no longer "
            f"at {shown(recipe.data.uri)}, so its classes are not known: name the data set's new place with --data"
        )
    return trained_on.class_names


def _check_classes(target: Target) -> None:
    mine, theirs = target.class_names, target.data.manifest.class_names
    if mine == theirs:
        return
    pairs = zip(mine, theirs, strict=False)
    first = next((f": {left!r} is {right!r} in the data set" for left, right in pairs if left != right), "")
    raise UserError(
        f"the {len(mine)} classes of {target.description} are not the {len(theirs)} of data set "
        f"{target.data.manifest.name}{first}; give a data set with the model's classes with --data"
    )
