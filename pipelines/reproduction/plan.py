"""Runs of a suite: recipes with their seeds and names, and with equal compute if the suite asks for it.

A run is named after its entry, its seed and its recipe's digest. A suite whose recipe changes therefore trains new
runs, and a run that several suites share is trained once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.errors import UserError
from pipelines.config.compute_budget import at_equal_compute
from pipelines.config.paths import shown
from pipelines.config.recipe import Recipe, build_recipe, load_recipe
from pipelines.reproduction.spec import Entry, Settings, Suite

_FIXED = {"run.seed": "a suite lists its seeds", "run.name": "a suite names its runs"}


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
        """Return the path or URI of the run's folder."""
        return f"{self.recipe.run.home}/{self.name}"


def plan_runs(suite: Suite, overrides: Mapping[str, Any]) -> list[SuiteRun]:
    """Return every run of the suite with dotted `overrides` on top; all entries of one seed precede the next seed.

    Raises:
        UserError: a recipe is missing or not valid, or the runs have different `run.home`.
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
        raise UserError(f"suite {suite.name}: its runs must share one run.home, got {', '.join(map(shown, homes))}")
    return runs


def _recipe(suite: Suite, entry: Entry, overrides: Mapping[str, Any]) -> Recipe:
    # a suite trains many models to compare them, so it does not register them under the recipe's name
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
