"""A study as data: what trials share, what differs between them, the budget, the scheduler and the searcher.

    title = "Peak rate and warm-up"
    recipe = "fashion_mnist"
    [set.model]                          # keys of every trial's recipe
    num_classes = 10
    [space]                              # what differs: a recipe's key, or named settings that change together
    "optim.lr_per_256" = {log_uniform = [0.02, 2.0]}
    shape = {settings = {cosine = {}, step = {"schedule.shape" = "step", "schedule.milestones" = [1.5, 2.25]}}}
    [budget]
    trials = 16
    reports = 9                          # evaluations of a trial, after equal shares of its compute
    [scheduler]
    name = "asha"
    [searcher]
    name = "random"

Every trial has the compute of the recipe (multiply-adds x images). A network that costs twice as much gets half the
schedule, and every duration in the schedule's unit is halved with it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infra.errors import UserError
from infra.nearest import nearest
from pipelines.config.recipe import SPACES
from pipelines.config.synonyms import our_study_key
from pipelines.config.toml import find_file, first_line, read_toml
from pipelines.tuning.distributions import Distribution

Settings = dict[str, dict[str, Any]]
"""section -> key -> value, as in a recipe."""
SchedulerName = Literal["none", "asha", "hyperband", "median", "pbt", "pb2"]
SearcherName = Literal["random", "grid", "tpe"]
POPULATION: tuple[SchedulerName, ...] = ("pbt", "pb2")
_NAME = re.compile(r"[A-Za-z0-9_-]+")


class _SpaceTable(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Budget(_SpaceTable):
    """Budget of a study: number of trials, and evaluations of each."""

    trials: Annotated[int, Field(ge=0)] = 0
    """Trials of the study; 0 = as many as the grid has points."""
    reports: Annotated[int, Field(ge=1)]
    """Evaluations of a whole trial, after equal shares of its compute; the schedulers' unit of time."""
    equal_compute: bool = True
    """Stretch every trial's schedule to the recipe's compute; false = keep schedules, so that trials differ in cost."""
    concurrent: Annotated[int, Field(ge=0)] = 0
    """Trials that run at the same time; 0 = as many as the cluster has CPUs and GPUs for."""


class SchedulerTable(_SpaceTable):
    """Scheduler, which stops trials early or changes their values during training."""

    name: SchedulerName = "none"
    """Scheduler; docs/tuning.md describes each one."""
    grace: Annotated[int, Field(ge=1)] = 1
    """Reports before a trial may be stopped, for "asha" and "median"."""
    eta: Annotated[float, Field(gt=1)] = 3.0
    """One of eta trials survives a rung, and the next rung is eta times later; for "asha" and "hyperband"."""
    interval: Annotated[int, Field(ge=1)] = 1
    """Reports between two changes, for "pbt" and "pb2"."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the trials that continue from another trial's weights, for "pbt" and "pb2"."""
    resample: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Probability that a changed key is drawn anew instead of multiplied by 0.8 or 1.2, for "pbt"."""


class SearcherTable(_SpaceTable):
    """Searcher, which proposes the values of new trials."""

    name: SearcherName = "random"
    """Searcher; random = random draws; grid = all points of the grid; tpe = Optuna's TPE."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random draws."""
    startup: Annotated[int, Field(ge=1)] = 8
    """Random trials before the model proposes values, for "tpe"."""
    objectives: tuple[Literal["accuracy", "compute"], ...] = ("accuracy",)
    """Objectives, for "tpe"; "compute" as a second one searches the Pareto front and needs equal_compute = false."""


class Final(_SpaceTable):
    """Settings of the winner's final run, for --finalize."""

    compute: Annotated[float, Field(gt=0)] = 1.0
    """Compute of the final run, as a multiple of a trial's; all durations scale alike."""
    set: Settings = {}
    """Keys to change in the winner's recipe: [final.set.section]."""


class Space(_SpaceTable):
    """Space file of a study."""

    name: str
    """Stem of the file it was read from."""
    title: str
    """Heading of tables and figures."""
    recipe: str
    """Recipe of all trials: file or shipped name."""
    set: Settings = {}
    """Keys to change in the recipe of all trials: [set.section]."""
    space: Annotated[dict[str, Distribution], Field(min_length=1)]
    """Values that differ between trials, by key."""
    budget: Budget
    """Number of trials, and evaluations of each."""
    scheduler: SchedulerTable = SchedulerTable()
    """How trials are stopped early or changed."""
    searcher: SearcherTable = SearcherTable()
    """How values are proposed."""
    final: Final = Final()
    """What --finalize trains."""

    @property
    def grid_size(self) -> int:
        size = 1
        for distribution in self.space.values():
            size *= len(distribution.grid())
        return size

    @property
    def trials(self) -> int:
        return self.budget.trials or self.grid_size

    @model_validator(mode="after")
    def _check(self) -> Self:
        _require(
            _NAME.fullmatch(self.name) is not None,
            f"the file's name may have letters, digits, _ and - only, got {self.name}",
        )
        for key, distribution in self.space.items():
            bundled = distribution.settings is not None
            _require(
                bundled != ("." in key),
                f"space.{key}: a recipe's key needs a dot (section.key), a name for settings must have none",
            )
        self._check_searcher()
        self._check_scheduler()
        return self

    def _check_searcher(self) -> None:
        grid = self.searcher.name == "grid"
        _require(grid or self.budget.trials > 0, 'budget.trials must be given unless searcher.name = "grid"')
        _require(
            not grid or not self.budget.trials, "budget.trials must be left out for a grid: its points are the trials"
        )
        for key, distribution in self.space.items():
            known = len(distribution.grid()) > 0
            _require(
                known or not grid, f"space.{key}: a grid needs the number of points in a range, such as points = 4"
            )
        both = len(self.searcher.objectives) > 1
        _require("accuracy" in self.searcher.objectives, 'searcher.objectives must include "accuracy"')
        _require(
            not both or self.searcher.name == "tpe", 'searcher.objectives: two objectives need searcher.name = "tpe"'
        )
        _require(
            not both or not self.budget.equal_compute,
            'searcher.objectives: "compute" needs budget.equal_compute = false',
        )

    def _check_scheduler(self) -> None:
        name = self.scheduler.name
        _require(self.scheduler.grace <= self.budget.reports, "scheduler.grace must be at most budget.reports")
        _require(
            name not in POPULATION or self.budget.trials >= 2,  # noqa: PLR2004
            f'scheduler "{name}" needs budget.trials of at least 2, got {self.budget.trials}',
        )
        _require(
            name not in POPULATION or self.searcher.name == "random",
            f'scheduler "{name}" needs searcher.name = "random", got "{self.searcher.name}"',
        )


def load_space(path: str) -> Space:
    """Return the space of a file, or a shipped space by its stem.

    Raises:
        UserError: there is no such file, it is not TOML, a key is unknown, or a value is not valid.
    """
    file = find_file(path, SPACES)
    if file is None:
        raise UserError(f"no space {path}{nearest(Path(path).stem, shipped())}; shipped spaces: {', '.join(shipped())}")
    values = read_toml(file)
    try:
        # via JSON: only there does strict mode accept arrays for tuples
        return Space.model_validate_json(json.dumps({"name": file.stem, **values}, default=str), strict=True)
    except ValidationError as error:
        raise UserError(f"{file.name}: {_message(error)}") from error


def shipped() -> list[str]:
    return sorted(file.stem for file in SPACES.glob("*.toml"))


def flattened(settings: Settings) -> dict[str, Any]:
    """Return section -> key -> value as dotted keys."""
    return {f"{section}.{key}": value for section, keys in settings.items() for key, value in keys.items()}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _message(error: ValidationError) -> str:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return _unknown_key(place)
    if first["type"] == "value_error" and place[:1] == ["space"]:
        return f"space.{place[1]}: {first['ctx']['error']}"
    return first_line(error)


def _unknown_key(place: list[str]) -> str:
    tables: dict[str, type[BaseModel]] = {
        "budget": Budget,
        "scheduler": SchedulerTable,
        "searcher": SearcherTable,
        "final": Final,
        "space": Distribution,
    }
    table = tables.get(place[0], Space) if len(place) > 1 else Space
    prefix = ".".join(place[:-1])
    known = [name for name in table.model_fields if not (table is Space and name == "name")]
    dotted = f"{prefix}." if prefix else ""
    other = our_study_key(place[0], place[-1]) if len(place) > 1 else ""
    hint = f" (did you mean {dotted}{other}?)" if other else nearest(place[-1], known, dotted)
    found = f"unknown key {dotted}{place[-1]}{hint}"
    return f"{found}; keys{f' of {prefix}' if prefix else ''}: {', '.join(known)}"
