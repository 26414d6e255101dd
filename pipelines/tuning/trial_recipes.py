"""Recipes of trials, made from a space and a trial's values. A space is refused if a recipe cannot be trained."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from infra.errors import UserError
from infra.storage import open_store
from pipelines.config.compute_budget import at_equal_compute, compute, stretched, time_at
from pipelines.config.paths import Here, here
from pipelines.config.recipe import Recipe, build_recipe, load_recipe, located
from pipelines.data.shards.manifest import MANIFEST, load_manifest
from pipelines.tuning.space import POPULATION, Space, flattened

Values = Mapping[str, Any]
"""A trial's value for every key of the space."""
_FIXED = {
    "run.name": "a study names its runs",
    "run.home": "it holds the whole study: give it by --set",
    "run.eval_at": "a study evaluates after equal shares of the compute, budget.reports times",
    "schedule.early_stopping_patience": "the study's scheduler ends trials early",
    "data.uri": "trials of different data cannot be compared",
}
_PROBES = 512  # up to this size all combinations are checked; else each key alone and all ends together
# Keys that may change during a run: tensors, steps and data stay the same.
_CHANGEABLE = ("optim.", "augment.", "schedule.", "model.drop")
_DECIDE_STEPS = ("optim.global_batch_size", "optim.optimizer", "schedule.length", "schedule.unit", "optim.ema_decay")


@dataclass(frozen=True)
class StudyPlan:
    """A space with the command line's overrides; the only source of trials' recipes."""

    space: Space
    overrides: Mapping[str, Any]
    here: Here = field(default_factory=here)
    """Folders in which relative paths begin; a trial's process runs in another folder."""

    @cached_property
    def base(self) -> Recipe:
        """Return the recipe that all trials share; its compute is also every trial's compute."""
        # a study trains many models to compare them, so it does not register them under the recipe's name
        settings = {"run.register_as": "", **flattened(self.space.set), **self.overrides}
        try:
            return _with_classes(load_recipe(self.space.recipe, settings))
        except UserError as error:
            raise UserError(f"space {self.space.name}: {error}") from error

    @property
    def register_as(self) -> str:
        """Return the winner's run.register_as: from the overrides, else the final table, else the recipe."""
        key = "run.register_as"
        asked = {**flattened(self.space.final.set), **self.overrides}.get(key)
        return str(load_recipe(self.space.recipe).run.register_as if asked is None else asked)

    def recipe(self, values: Values) -> Recipe:
        """Return the recipe for these values, with the study's compute and evaluations; run.name stays unset.

        Raises:
            UserError: the values give a recipe that cannot be trained.
        """
        recipe = build_recipe({}, {**self.base.flat(), **self.settings(values)}, where=self.space.name)
        recipe = located(recipe, self.here)
        if self.space.budget.equal_compute:
            recipe = at_equal_compute(recipe, self.base)
        return self._evaluated(recipe)

    def named(self, values: Values, name: str) -> Recipe:
        """Return the recipe of a trial's run; a population keeps all checkpoints, for other trials to continue from.

        The scheduler ends trials early, so that they are compared at equal compute; early stopping is for the winner.
        """
        kept = {"run.keep_best": self.space.budget.reports} if self.space.scheduler.name in POPULATION else {}
        return build_recipe(
            {},
            {**self.recipe(values).flat(), **kept, "schedule.early_stopping_patience": 0, "run.name": name},
            where=name,
        )

    def final(self, values: Values) -> Recipe:
        """Return the winner's recipe for `train.py`: evaluations after epochs, a new name, and its registration."""
        recipe = self.recipe(values)
        factor = self.space.final.compute
        recipe = stretched(recipe, factor) if factor != 1 else recipe
        own = {"name": f"{self.space.name}-winner", "run.eval_at": [], "run.name": "", "run.register_as": ""}
        settings = {**own, **flattened(self.space.final.set), "run.register_as": self.register_as}
        final = build_recipe({}, {**recipe.flat(), **settings}, where=f"{self.space.name}, final")
        return located(final, self.here)

    def settings(self, values: Values) -> dict[str, Any]:
        """Return the recipe's keys that the values set."""
        return {
            key: setting
            for name, value in values.items()
            for key, setting in self.space.space[name].overrides(name, value).items()
        }

    def starts(self) -> list[str]:
        """Return every `model.init_from` of the trials."""
        offered = [
            distribution.overrides(key, value).get("model.init_from", "")
            for key, distribution in self.space.space.items()
            for value in distribution.extremes()
        ]
        return sorted({self.base.model.init_from, *offered} - {""})

    def changeable(self) -> list[str]:
        """Return the keys of the space that may change during a run."""
        return [key for key in self.space.space if key.startswith(_CHANGEABLE) and key not in _DECIDE_STEPS]

    def compute(self, values: Values, samples_per_epoch: int) -> float:
        """Return the multiply-adds x images of the whole trial."""
        return compute(self.recipe(values), samples_per_epoch)

    def check(self) -> None:
        """Raise UserError if a trial cannot be trained; the check covers values in lists and both ends of ranges."""
        for key, distribution in self.space.space.items():
            for name in distribution.overrides(key, distribution.extremes()[0]):
                if name in _FIXED:
                    raise UserError(f"space {self.space.name}: {name} cannot be searched: {_FIXED[name]}")
        if self.base.run.num_workers == 0:
            raise UserError(
                f"space {self.space.name}: run.num_workers must be at least 1: Ray Train has no local mode under Tune"
            )
        if isinstance(self.base.run.num_workers, tuple):
            raise UserError(f"space {self.space.name}: run.num_workers must be one number: trials share the cluster")
        for key in ("run.name", "run.eval_at"):
            if key in {**flattened(self.space.set), **self.overrides}:
                raise UserError(f"space {self.space.name}: {key} cannot be set: {_FIXED[key]}")
        if self.space.scheduler.name in POPULATION and not self.changeable():
            raise UserError(
                f'space {self.space.name}: scheduler "{self.space.scheduler.name}" changes keys during a run, but no '
                "key of this space may change then: add one such as optim.lr_per_256, optim.weight_decay or "
                "model.drop_path"
            )
        for values in self._probes():
            self._try(values)

    def _try(self, values: Values) -> None:
        try:
            recipe = self.recipe(values)
        except UserError as error:
            raise UserError(f"space {self.space.name}: with {_listed(values)}: {error}") from error
        epochs = recipe.schedule.length if recipe.schedule.unit == "epochs" else 0
        if self.space.budget.reports < epochs:
            raise UserError(
                f"space {self.space.name}: budget.reports = {self.space.budget.reports} is less than one per epoch: "
                f"a trial has {epochs:.3g} epochs with {_listed(values)}{self._stretched(epochs)}. "
                f"Set budget.reports = {math.ceil(epochs)} or more"
            )

    def _stretched(self, epochs: float) -> str:
        """Return why a trial's number of epochs differs from the recipe's; "" if it does not."""
        length = self.base.schedule.length
        return f" at the compute of the recipe's {length:.3g} (budget.equal_compute)" if epochs != length else ""

    def _probes(self) -> Iterable[Values]:
        offered = {key: distribution.extremes() for key, distribution in self.space.space.items()}
        if math.prod(map(len, offered.values())) <= _PROBES:
            yield from (dict(zip(offered, values, strict=True)) for values in itertools.product(*offered.values()))
            return
        first = {key: values[0] for key, values in offered.items()}
        yield first
        yield {key: values[-1] for key, values in offered.items()}
        for key, values in offered.items():
            yield from ({**first, key: value} for value in values[1:])

    def _evaluated(self, recipe: Recipe) -> Recipe:
        """Return the recipe with evaluations after equal shares of its compute."""
        reports, whole = self.space.budget.reports, recipe.schedule.unit == "steps"
        times = [time_at(recipe, place / reports) for place in range(1, reports)]
        times = [float(round(time)) if whole else round(time, 6) for time in times]
        distinct = sorted({time for time in times if 0 < time < recipe.schedule.length})
        return build_recipe({}, {**recipe.flat(), "run.eval_at": distinct}, where=self.space.name)


def _listed(values: Values) -> str:
    return ", ".join(f"{key} = {value!r}" for key, value in values.items())


def _with_classes(recipe: Recipe) -> Recipe:
    """Fill in model.num_classes, which decides the multiply-adds, from the data set if that exists already."""
    store = open_store(recipe.data.uri)
    if recipe.model.num_classes or not store.exists(MANIFEST):
        return recipe
    classes = len(load_manifest(store).class_names)
    return build_recipe({}, {**recipe.flat(), "model.num_classes": classes}, where=recipe.name)
