"""From a suite to its runs: recipes with their seeds and names, and equal budgets where the suite asks for them.

A run is named after its entry, its seed and its recipe's digest: a suite whose recipe changes trains anew, and suites
that share a run train it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.errors import UserError
from pipelines.recipe import Recipe, build_recipe, load_recipe
from pipelines.suite import Entry, Settings, Suite

_FIXED = {"run.seed": "a suite lists its seeds", "run.name": "a suite names its runs"}
_IN_SCHEDULE_UNIT = (
    "schedule.length",
    "schedule.warmup",
    "schedule.milestones",
    "schedule.points",
    "schedule.drop_path_ramp",
    "optim.average_from",
)
_DECIMALS = 6  # of epochs: less than one image of any data set here


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteRun:
    """One training run of a suite."""

    entry: Entry
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        return self.recipe.run_name

    @property
    def uri(self) -> str:
        """Of its folder."""
        return f"{self.recipe.run.home}/{self.name}"


def plan_runs(suite: Suite, overrides: Mapping[str, Any]) -> list[SuiteRun]:
    """Every run of the suite with `overrides` (dotted) on top, all entries of one seed before the next seed.

    Raises:
        UserError: a recipe that is not there or not valid, or runs of different `run.home`.
    """
    recipes = {entry.name: _recipe(suite, entry, overrides) for entry in suite.trained}
    if suite.equal_compute:
        baseline = recipes[suite.equal_compute]
        recipes = {name: at_equal_compute(recipe, baseline) for name, recipe in recipes.items()}
    most = max(len(suite.seeds_of(entry)) for entry in suite.trained)
    runs = [
        _seeded(entry, recipes[entry.name], seeds[place])
        for place in range(most)
        for entry in suite.trained
        if place < len(seeds := suite.seeds_of(entry))
    ]
    homes = sorted({run.recipe.run.home for run in runs})
    if len(homes) > 1:
        raise UserError(f"suite {suite.name}: its runs must share one run.home, got {', '.join(homes)}")
    return runs


def at_equal_compute(recipe: Recipe, baseline: Recipe) -> Recipe:
    """The recipe with its schedule stretched to the baseline's budget, every duration alike.

    The budget is multiply-adds (convolutions and linear layers, one image of data.image_size, forward) times the images
    that the run sees; a backward pass costs twice the forward one, so that training costs three times this.

    Raises:
        UserError: the two cannot be compared like that.
    """
    for key in ("schedule.unit", "data.uri"):
        mine, theirs = recipe.flat()[key], baseline.flat()[key]
        if mine != theirs:
            raise UserError(f"equal_compute: {key} must be the same in all recipes, got {theirs!r} and {mine!r}")
    factor = _budget(baseline) / _budget(recipe)
    flat = recipe.flat()
    scaled = {key: _scaled(flat[key], factor, recipe.schedule.unit) for key in _IN_SCHEDULE_UNIT}
    return build_recipe({}, {**flat, **scaled}, where=f"{recipe.name} at equal compute")


def multiply_adds(recipe: Recipe) -> int:
    """Of one image's forward pass at data.image_size; the number of classes must be known."""
    from resnet_core.models.cost import cost

    return cost(recipe.model.variant, size=recipe.data.image_size, num_classes=recipe.model.num_classes).multiply_adds


def _budget(recipe: Recipe) -> float:
    """Multiply-adds times length, whose unit has as many images in all recipes but for the batch size."""
    if not recipe.model.num_classes:
        raise UserError("equal_compute: multiply-adds depend on the classes: give the suite's set.model.num_classes")
    if recipe.curriculum.until:
        raise UserError("equal_compute: a curriculum changes the multiply-adds on the way, which is not counted")
    images = recipe.optim.global_batch_size if recipe.schedule.unit == "steps" else 1
    return multiply_adds(recipe) * recipe.schedule.length * images


def _scaled(value: Any, factor: float, unit: str) -> Any:
    if isinstance(value, list):
        return [_scaled(each, factor, unit) for each in value]
    return float(round(value * factor) if unit == "steps" else round(value * factor, _DECIMALS))


def _recipe(suite: Suite, entry: Entry, overrides: Mapping[str, Any]) -> Recipe:
    # a suite trains many models to compare them; a recipe's own registration is not asked for
    settings = {"run.register_as": "", **_flat(suite.set), **_flat(entry.set), **overrides}
    for key, why in _FIXED.items():
        if key in settings:
            raise UserError(f"suite {suite.name}: {key} cannot be set: {why}")
    try:
        return load_recipe(entry.recipe or suite.recipe, settings)
    except UserError as error:
        raise UserError(f"suite {suite.name}, entry {entry.name}: {error}") from error


def _seeded(entry: Entry, recipe: Recipe, seed: int) -> SuiteRun:
    values = {**recipe.flat(), "run.seed": seed}
    digest = build_recipe({}, values, where=entry.name).digest
    named = build_recipe({}, {**values, "run.name": f"{entry.name}-seed{seed}-{digest[:8]}"}, where=entry.name)
    return SuiteRun(entry=entry, seed=seed, recipe=named)


def _flat(settings: Settings) -> dict[str, Any]:
    return {f"{section}.{key}": value for section, keys in settings.items() for key, value in keys.items()}
