"""A suite as data: recipes, seeds, published figures to compare with, and figures to draw.

[suite file]
title = "Plain against residual nets"
recipe = "fashion_mnist"
seeds = [0, 1, 2]
measures = ["train_error", "test_error"]
[set.schedule]                       # keys to change in the recipes of all entries
length = 2
[[entry]]
name = "resnet20"
set.model.name = "resnet20"          # keys to change in this entry's recipe
published.test_error = 8.75          # percent
[[curves]]
name = "errors"                      # errors.png
panels = {residual = ["resnet20"]}
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infra.errors import UserError
from infra.nearest import nearest
from pipelines.config.toml import find_file, first_line, read_toml

SUITES = Path(__file__).parents[1] / "suites"
Measure = Literal[
    "train_error",
    "test_error",
    "test_top5_error",
    "ten_crop_error",
    "ten_crop_top5_error",
    "multi_scale_error",
    "multi_scale_top5_error",
]
"""Error of a run's last checkpoint, percent."""
Settings = dict[str, dict[str, Any]]
"""section -> key -> value, as in a recipe."""
_NAME = re.compile(r"[A-Za-z0-9._-]+")


class _SuiteTable(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_SuiteTable):
    """Row of the table: a recipe, trained once per seed; with `members`, an ensemble of other entries' runs."""

    name: str
    """Name of the row; its runs are named after it."""
    recipe: str = ""
    """Recipe: file or shipped name; "" = the suite's."""
    seeds: tuple[int, ...] | None = None
    """Seeds of this entry; none = the suite's."""
    set: Settings = {}
    """Keys to change in this entry's recipe: {section = {key = value}}."""
    members: tuple[str, ...] = ()
    """Entries whose runs, of all seeds, form an ensemble: the mean of their probabilities. Nothing is trained."""
    published: dict[Measure, float] = {}
    """Published figure of each measure, percent."""


class FigureSpec(_SuiteTable):
    """Figure of the measurements of entries' runs."""

    name: str
    """Stem of its file."""
    panels: Annotated[dict[str, tuple[str, ...]], Field(min_length=1)]
    """Panels: title -> entries drawn in it."""

    @property
    def entries(self) -> list[str]:
        return [name for names in self.panels.values() for name in names]


class CurvesFigure(FigureSpec):
    """Figure of training and test error over steps: mean and deviation over seeds (Figures 1, 4 and 6)."""

    most: float | None = Field(None, gt=0)
    """End of the error axis, percent; none = the largest error."""


class ResponsesFigure(FigureSpec):
    """Figure of the responses' deviation by layer: mean over seeds (Figure 7)."""


class Suite(_SuiteTable):
    """Suite file: entries to train, measures, published figures, and figures to draw."""

    name: str
    """Stem of the file it was read from."""
    title: str
    """Heading of the table."""
    recipe: str = ""
    """Recipe of entries without a recipe."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; every entry is trained once with each."""
    set: Settings = {}
    """Keys to change in the recipes of all entries: [set.section]."""
    measures: tuple[Measure, ...] = ("test_error",)
    """Errors to measure for each run, percent."""
    train_images: int = Field(0, ge=0)
    """Training images that train_error scores, about this many at random; 0 = all."""
    equal_compute: str = ""
    """Entry to whose compute (multiply-adds x images) all schedules are stretched; "" = keep schedules."""
    entry: Annotated[tuple[Entry, ...], Field(min_length=1)]
    """Rows of the table."""
    curves: tuple[CurvesFigure, ...] = ()
    """Figures of training and test error."""
    responses: tuple[ResponsesFigure, ...] = ()
    """Figures of the responses of layers."""

    @property
    def pictures(self) -> tuple[FigureSpec, ...]:
        return *self.curves, *self.responses

    def seeds_of(self, entry: Entry) -> tuple[int, ...]:
        return self.seeds if entry.seeds is None else entry.seeds

    @property
    def trained(self) -> tuple[Entry, ...]:
        """Return the entries that are not ensembles."""
        return tuple(entry for entry in self.entry if not entry.members)

    def find(self, name: str) -> Entry:
        """Return the entry of this name.

        Raises:
            UserError: the suite has no such entry.
        """
        for entry in self.entry:
            if entry.name == name:
                return entry
        names = [entry.name for entry in self.entry]
        raise UserError(f"suite {self.name} has no entry {name}{nearest(name, names)}; entries: {', '.join(names)}")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_repeated("entry", [entry.name for entry in self.entry])
        _refuse_repeated("figure", [figure.name for figure in self.pictures])
        for entry in self.entry:
            self._check_entry(entry)
        trained = [entry.name for entry in self.trained]
        for named, where in self._references():
            hint = f"{nearest(named, trained)}; trained entries: {', '.join(trained)}"
            _require(named in trained, f"{where} names {named}, which the suite does not train{hint}")
        return self

    def _check_entry(self, entry: Entry) -> None:
        where, seeds = f"entry {entry.name}", self.seeds_of(entry)
        _require(_NAME.fullmatch(entry.name) is not None, f"{where}: a name may have letters, digits and . _ - only")
        _require(bool(seeds), f"{where}: seeds must not be empty")
        _require(len(set(seeds)) == len(seeds), f"{where}: seeds must differ, got {list(seeds)}")
        for measure in entry.published:
            _require(measure in self.measures, f"{where}: published.{measure} is not among the suite's measures")
        if entry.members:
            own = entry.recipe or entry.set or entry.seeds is not None
            _require(not own, f"{where} has members, so it trains nothing: recipe, seeds and set do not apply")
        else:
            _require(
                bool(entry.recipe or self.recipe),
                f"{where} names no recipe, and neither does the suite: add recipe to one of them",
            )

    def _references(self) -> list[tuple[str, str]]:
        """Return each reference to an entry as (name of the entry, where it is used)."""
        named = [(figure.entries, f"figure {figure.name}") for figure in self.pictures]
        named += [(list(entry.members), f"entry {entry.name}") for entry in self.entry]
        named += [([self.equal_compute], "equal_compute")] if self.equal_compute else []
        return [(name, where) for names, where in named for name in names]


def load_suite(path: str) -> Suite:
    """Return the suite of a file, or a shipped suite by its stem.

    Raises:
        UserError: there is no such file, it is not TOML, a key is unknown, or a value is not valid.
    """
    file = _find(path)
    values = read_toml(file)
    try:
        # via JSON: only there does strict mode accept arrays for tuples
        return Suite.model_validate_json(json.dumps({"name": file.stem, **values}, default=str), strict=True)
    except ValidationError as error:
        raise UserError(f"{file.name}: {_message(error)}") from error


def shipped() -> list[str]:
    return sorted(file.stem for file in SUITES.glob("*.toml"))


def _find(name: str) -> Path:
    file = find_file(name, SUITES)
    if file is not None:
        return file
    raise UserError(f"no suite {name}{nearest(Path(name).stem, shipped())}; shipped suites: {', '.join(shipped())}")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _refuse_repeated(kind: str, names: Iterable[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    _require(not repeated, f"{kind} {''.join(repeated[:1])} is defined twice")


def _message(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        return _unknown_key([str(part) for part in first["loc"]])
    return first_line(error)


def _unknown_key(place: list[str]) -> str:
    tables: dict[str, type[_SuiteTable]] = {"entry": Entry, "curves": CurvesFigure, "responses": ResponsesFigure}
    table = tables.get(place[0], Suite)
    prefix = "" if table is Suite else f"{place[0]}."
    known = [name for name in table.model_fields if not (table is Suite and name == "name")]
    found = f"unknown key {prefix}{place[-1]}{nearest(place[-1], known, prefix)}"
    return f"{found}; keys{f' of {place[0]}' if prefix else ''}: {', '.join(known)}"
