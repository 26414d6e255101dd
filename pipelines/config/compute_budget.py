"""Compute of a run: multiply-adds times images, summed over the phases of its curriculum.

The count covers the forward pass over the training images: convolutions and linear layers. A backward pass costs twice
as much, so training costs three times the count. Evaluations are not counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from infra.errors import UserError
from pipelines.config.recipe import Recipe, build_recipe
from resnet_core.config import ModelConfig

_IN_SCHEDULE_UNIT = (
    "schedule.length",
    "schedule.warmup",
    "schedule.milestones",
    "schedule.points",
    "schedule.drop_path_ramp",
    "optim.average_from",
    "optim.head_first",
    "curriculum.until",
    "run.eval_at",
)
_DECIMALS = 6  # of epochs: finer than one image of any data set here


def multiply_adds(recipe: Recipe) -> int:
    """Return the multiply-adds of one image's forward pass at data.image_size.

    Raises:
        UserError: model.num_classes, which decides multiply-adds, is not known.
    """
    return _multiply_adds(recipe.model, recipe.data.image_size)


def compute(recipe: Recipe, samples_per_epoch: int = 1) -> float:
    """Return the multiply-adds of the whole run; without `samples_per_epoch`, an epoch counts as one image.

    Raises:
        UserError: model.num_classes, which decides multiply-adds, is not known.
    """
    return sum((end - begin) * rate for begin, end, rate in _phases(recipe)) * _per_epoch(recipe, samples_per_epoch)


def time_at(recipe: Recipe, share: float) -> float:
    """Return the time, in schedule.unit, at which the run has spent this share of its compute."""
    left = share * sum((end - begin) * rate for begin, end, rate in _phases(recipe))
    for begin, end, rate in _phases(recipe):
        if left <= (end - begin) * rate:
            return begin + left / rate
        left -= (end - begin) * rate
    return recipe.schedule.length


def at_equal_compute(recipe: Recipe, baseline: Recipe) -> Recipe:
    """Return the recipe with its schedule stretched to the baseline's compute; all durations scale alike.

    Raises:
        UserError: schedule.unit or data.uri of the two differ, or model.num_classes is not known.
    """
    for key in ("schedule.unit", "data.uri"):
        mine, theirs = recipe.flat()[key], baseline.flat()[key]
        if mine != theirs:
            raise UserError(f"equal_compute: {key} must be the same in all recipes, got {theirs!r} and {mine!r}")
    return stretched(recipe, compute(baseline) / compute(recipe))


def stretched(recipe: Recipe, factor: float) -> Recipe:
    """Return the recipe with every duration multiplied by `factor`."""
    flat = recipe.flat()
    scaled = {key: _scaled(flat[key], factor, recipe.schedule.unit) for key in _IN_SCHEDULE_UNIT}
    return build_recipe({}, {**flat, **scaled}, where=f"{recipe.name} at equal compute")


def _phases(recipe: Recipe) -> Iterator[tuple[float, float, float]]:
    """Yield (begin, end, multiply-adds per image) of each phase; times in schedule.unit."""
    curriculum, sam = recipe.curriculum, recipe.optim.sam_rho > 0
    ends = [*curriculum.until, recipe.schedule.length]
    sizes = curriculum.image_size or (recipe.data.image_size,) * len(ends)
    names = curriculum.model or (recipe.model.name,) * len(ends)
    gradients = 1 + sam / recipe.optim.sam_every
    begin = 0.0
    for end, size, name in zip(ends, sizes, names, strict=True):
        yield begin, end, gradients * _multiply_adds(dataclasses.replace(recipe.model, name=name), size)
        begin = end


def _per_epoch(recipe: Recipe, samples_per_epoch: int) -> int:
    """Return the number of images in one unit of the schedule."""
    return recipe.optim.global_batch_size if recipe.schedule.unit == "steps" else samples_per_epoch


def _multiply_adds(model: ModelConfig, size: int) -> int:
    from resnet_core.models.cost import cost

    if not model.num_classes:
        raise UserError(
            "equal_compute: multiply-adds depend on the number of classes: prepare the data set first, or give "
            "set.model.num_classes"
        )
    return cost(model.variant, size=size, num_classes=model.num_classes).multiply_adds


def _scaled(value: Any, factor: float, unit: str) -> Any:
    if isinstance(value, list):
        return [_scaled(each, factor, unit) for each in value]
    return float(round(value * factor) if unit == "steps" else round(value * factor, _DECIMALS))
