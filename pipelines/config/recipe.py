"""A run as data: one TOML file and dotted overrides, validated once.

    recipe = load_recipe("fashion_mnist", {"run.num_workers": 2, "optim.lr_per_256": 0.2})

Every entry point (command line, Tune, tests, resume) uses `load_recipe`. An error about an unknown key names the
nearest valid one; an error about a wrong type or value names the key. The resolved recipe is itself a valid recipe.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.errors import UserError
from infra.nearest import closest, nearest
from pipelines.config import DEMO, paths
from pipelines.config.field_docs import field_docs, first_sentence
from pipelines.config.paths import Here
from pipelines.config.prepare import PrepareConfig
from pipelines.config.sections import DataConfig, RunConfig
from pipelines.config.synonyms import our_key
from pipelines.config.toml import find_file, first_line, read_toml
from resnet_core.config import (
    VARIANTS,
    AugmentConfig,
    ComputeConfig,
    CurriculumConfig,
    LossWeightsConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
)
from resnet_core.curriculum import Batches, Phase, phases
from resnet_core.schedule import epoch_end_step, to_steps, total_samples, total_steps

RECIPES = Path(__file__).parents[1] / "recipes"
SPACES = Path(__file__).parents[1] / "spaces"
_EMBEDDED = "mnist5k"  # the word in `data.source`; `./mnist5k` is a folder


NOT_TRAINED = frozenset(
    {
        *("name", "data.uri", "data.source", "data.task_mb"),
        *("model.num_classes", "model.multi_label"),  # the data set decides them
        *("data.eval_split", "data.test_split"),  # only decide what the weights are scored on
        *("data.max_bad_samples", "data.cache_dir", "data.cache_gb"),
    }
)
"""Keys that do not change the trained weights (the manifest's digest identifies the data set itself)."""


class Recipe(BaseModel):
    """One run. Each section is a frozen dataclass; a function receives its section, never the whole recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "recipe"
    """Stem of the recipe's file, followed by the data set's folder if `data.uri` is not the file's own."""
    model: ModelConfig = ModelConfig()
    prepare: PrepareConfig = PrepareConfig()
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    optim: OptimConfig = OptimConfig()
    loss: LossWeightsConfig = LossWeightsConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    compute: ComputeConfig = ComputeConfig()
    run: RunConfig = RunConfig()

    @property
    def run_name(self) -> str:
        """Return the name of the run's folder and MLflow run, by which the same recipe finds its run again."""
        return self.run.name or f"{self.name}-{self.digest[:8]}"

    @property
    def digest(self) -> str:
        """Return the sha256 of what decides the trained weights; the place and hardware of the run do not count."""
        return hashlib.sha256(json.dumps(self.trajectory(), sort_keys=True).encode()).hexdigest()

    def trajectory(self) -> dict[str, Any]:
        """Return the flat dotted keys that decide the trained weights (the manifest's digest identifies the data set).

        Defaults are left out, so that a run keeps its name when a later version adds keys.
        """
        sections, rounding = ("prepare.", "compute.", "run."), ("compute.precision", "compute.all_reduce")
        flat = self.flat()
        flat["model.init_from"] = paths.below(self.model.init_from, self.run.relative_to)
        return {
            key: value
            for key, value in flat.items()
            if key in rounding or key == "run.seed" or not (key in NOT_TRAINED or key.startswith(sections))
            if value != DEFAULTS[key]
        }

    def phases(self, samples_per_epoch: int) -> tuple[Phase, ...]:
        """Return the phases of the curriculum, in steps.

        Raises:
            UserError: the curriculum does not fit the schedule or the model.
        """
        batches = Batches(samples_per_epoch=samples_per_epoch, size=self.optim.global_batch_size)
        try:
            return phases(self.curriculum, self.schedule, batches, image_size=self.data.image_size, model=self.model)
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from error

    def evaluation_steps(self, samples_per_epoch: int) -> list[int]:
        """Return the steps at which the run evaluates, ascending.

        They follow `run.eval_at` or, if that is empty, `run.eval_every_epochs`. The last step is always one of them.
        """
        unit, batch = self.schedule.unit, self.optim.global_batch_size
        total = total_steps(self.schedule, samples_per_epoch, batch)
        if self.run.eval_at:
            return [*(min(total, max(1, to_steps(t, unit, samples_per_epoch, batch))) for t in self.run.eval_at), total]
        every = self.run.eval_every_epochs
        epochs = range(every, total * batch // samples_per_epoch + 1, every)
        ends = {epoch_end_step(epoch, samples_per_epoch, batch, total) for epoch in epochs}
        return sorted(ends | {total})

    def average_start(self, samples_per_epoch: int) -> int:
        """Return the first step of `optim.average_from`.

        Raises:
            UserError: the run ends before that step.
        """
        batch, first = self.optim.global_batch_size, self.optim.average_from
        start = to_steps(first, self.schedule.unit, samples_per_epoch, batch)
        if start >= total_steps(self.schedule, samples_per_epoch, batch):
            raise UserError(
                f"{self.name}: optim.average_from = {first} leaves no step before schedule.length to average"
            )
        return start

    def check_early_stopping(self) -> None:
        """Raise UserError if the run may end early, at a step that cannot be evaluated as the last one."""
        if self.optim.exact_bn_images and self.schedule.early_stopping_patience:
            raise UserError(
                f"{self.name}: optim.exact_bn_images must be 0 with schedule.early_stopping_patience, because only the "
                "last step has exact statistics"
            )

    def head_steps(self, samples_per_epoch: int) -> int:
        """Return the number of steps of `optim.head_first`.

        Raises:
            UserError: the run ends before, or the network does not start from weights or grows.
        """
        batch, first = self.optim.global_batch_size, self.optim.head_first
        steps = to_steps(first, self.schedule.unit, samples_per_epoch, batch)
        if steps >= total_steps(self.schedule, samples_per_epoch, batch):
            raise UserError(f"{self.name}: optim.head_first = {first} leaves no step before schedule.length")
        if first and not self.model.init_from:
            raise UserError(f"{self.name}: optim.head_first must be 0 without model.init_from, got {first}")
        changed = {"optim.head_first": first, "optim.layer_decay": self.optim.layer_decay}
        for key, value in {**changed, "model.freeze": self.model.freeze}.items():
            if self.curriculum.model and value != DEFAULTS[key]:
                raise UserError(f"{self.name}: {key} must be {DEFAULTS[key]!r} with curriculum.model, got {value!r}")
        return steps

    def check_batch_norm(self, samples_per_epoch: int) -> None:
        """Raise UserError if a worker would pass a single image whose last features are 1 x 1.

        BatchNorm would then have one value per channel, which has no variance.
        """
        batch = min(
            self.optim.global_batch_size, total_samples(self.schedule, samples_per_epoch, self.optim.global_batch_size)
        )
        (least, most), crops = self.run.workers, self.data.repeats
        if self.optim.sync_batch_norm and least > 1:
            return  # statistics cover all workers
        rank_batch = batch // crops // max(1, most) * crops  # smallest of a step
        limit = self.compute.microbatch_size
        images = rank_batch // -(-rank_batch // limit) if rank_batch and limit else rank_batch
        for phase in self.phases(samples_per_epoch):
            if images == 1 and phase.image_size <= phase.model.variant.stride:
                remedy = (
                    f"optim.global_batch_size to {2 * max(1, most)}"
                    if rank_batch == 1
                    else "compute.microbatch_size to 2"
                )
                raise UserError(
                    f"BatchNorm needs two values per channel, and a worker would pass one image at a time, whose last "
                    f"features in {phase.model.name} are 1 x 1 at {phase.image_size} pixels: raise {remedy} or more, "
                    f"or the image size above {phase.model.variant.stride}"
                )

    def flat(self) -> dict[str, Any]:
        """Return every key as `section.key`; tuples become lists."""
        flat: dict[str, Any] = {"name": self.name}
        for section in SECTIONS:
            for field in dataclasses.fields(getattr(self, section)):
                value = getattr(getattr(self, section), field.name)
                flat[f"{section}.{field.name}"] = list(value) if isinstance(value, tuple) else value
        return flat

    def to_toml(self) -> str:
        """Return the resolved recipe as TOML, itself a valid recipe."""
        return tomli_w.dumps(_nest(self.flat()))


SECTIONS = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if field.annotation is not None and dataclasses.is_dataclass(field.annotation)
}
DEFAULTS: dict[str, Any] = {"name": ""} | {
    f"{name}.{field.name}": list(field.default) if isinstance(field.default, tuple) else field.default
    for name, section in SECTIONS.items()
    for field in dataclasses.fields(section)
}

PATHS = {
    f"{name}.{field.name}": str(field.type)
    for name, section in SECTIONS.items()
    for field in dataclasses.fields(section)
    if field.type in ("Location", "Source", "NodeFolder")
}
"""Keys that hold paths, with the names of their types."""


def load_recipe(path: str | Path = DEMO, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe of a file, or a shipped one by its stem; dotted overrides apply before anything is derived.

    Paths in the recipe are absolute.

    Raises:
        UserError: there is no such file, it is not TOML, or a key or value is not valid.
    """
    file = _find(str(path))
    values = {"name": file.stem, **read_toml(file)}
    recipe = build_recipe(values, overrides or {}, where=file.name)
    return located(_named_by_data(recipe, str(values.get("data", {}).get("uri", ""))), paths.here())


def located(recipe: Recipe, here: Here) -> Recipe:
    """Return the recipe with absolute paths, as seen from `here`."""
    flat = recipe.flat()
    changed = {}
    for key, kind in PATHS.items():
        if kind == "Source" and flat[key] == _EMBEDDED:
            continue
        path = paths.absolute(flat[key], here.disk if kind == "NodeFolder" else here.folder)
        if path != flat[key]:
            changed[key] = path
    if "model.init_from" in changed:
        changed["run.relative_to"] = here.folder
    return build_recipe({}, {**flat, **changed}, where=recipe.name) if changed else recipe


def prepare_config(overrides: Mapping[str, Any]) -> PrepareConfig:
    """Return the settings of `prepare.py`. Raises UserError if a key is invalid or of another section."""
    for key in overrides:
        if not key.startswith("prepare."):
            raise UserError(f"--set {key}: prepare.py takes keys of the section prepare only")
    config = build_recipe({"data": {"uri": "none"}}, overrides, where="--set").prepare
    return dataclasses.replace(config, root=paths.origin(config.root))


def data_name(uri: str) -> str:
    """Return a data set's display name: its folder's name, in characters that run folders and models may have."""
    folder = PurePosixPath(uri).name.strip(".") or Path(uri).absolute().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("-.") or "data"


def build_recipe(
    values: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, where: str = "recipe"
) -> Recipe:
    """Validate nested `values` with dotted `overrides` on top.

    Raises:
        UserError: a key is unknown, or a value has the wrong type or is out of range.
    """
    flat = {**_flatten(values, where), **(overrides or {})}
    for key in flat:
        _check_key(key, where)
    try:
        # via JSON: only there does strict mode accept tables and arrays for dataclasses and tuples
        return Recipe.model_validate_json(json.dumps(_nest(flat), default=str), strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {first_line(error)}") from error


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Return the overrides of `["optim.lr_per_256=0.2", "data.uri=s3://b/p"]`: values as TOML, bare words as strings.

    Raises:
        UserError: a setting is not section.key=value.
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or "." not in key:
            hint = "" if "." in key else _meant(key.strip())
            raise UserError(f"--set {setting}: expected section.key=value{hint}")
        try:
            overrides[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            overrides[key.strip()] = text
    return overrides


def _named_by_data(recipe: Recipe, own_uri: str) -> Recipe:
    """Return the recipe with the data set's name added to its own, so that each data set gets its own runs.

    The name stays unchanged if the data set is the file's own, or if the recipe has a `data.source`: such a recipe has
    one data set, in any folder.
    """
    name = data_name(recipe.data.uri)
    if recipe.data.source or (own_uri and name == data_name(own_uri)):
        return recipe
    return recipe.model_copy(update={"name": f"{recipe.name}-{name}"})


def shipped_recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(file.stem for file in RECIPES.glob("*.toml"))


def _find(name: str) -> Path:
    file = find_file(name, RECIPES)
    if file is not None:
        return file
    shipped = shipped_recipes()
    if name in VARIANTS:
        raise UserError(f"no recipe {name}: it is a network. Name a recipe and add --set model.name={name}")
    hint = nearest(Path(name).stem, shipped)
    raise UserError(f"no recipe {name}{hint}; `python pipelines/train.py --list` shows the shipped ones")


def _flatten(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, content in values.items():
        if section == "name":
            flat[section] = content
        elif isinstance(content, Mapping):
            flat.update({f"{section}.{key}": value for key, value in content.items()})
        else:
            hint = _meant(section) or f"; sections: {', '.join(SECTIONS)}"
            raise UserError(f"{where}: {section} = {content!r} is outside a section{hint}")
    return flat


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, dot, field = key.partition(".")
        if dot:
            nested.setdefault(section, {})[field] = value
        else:
            nested[key] = value
    return nested


def _check_key(key: str, where: str) -> None:
    section, dot, field = key.partition(".")
    if not dot:
        if key != "name":
            raise UserError(f"{where}: unknown key {key}{_meant(key)}")
        return
    if section not in SECTIONS:
        likely = closest(section, SECTIONS)
        within = likely and field in _fields(likely)
        hint = nearest(section, SECTIONS) if within else _meant(key) or nearest(section, SECTIONS)
        raise UserError(f"{where}: unknown section {section}{hint}; sections: {', '.join(SECTIONS)}")
    if field not in _fields(section):
        hint = _meant(key) or f"; keys of {section}: {', '.join(_fields(section))}"
        raise UserError(f"{where}: unknown key {key}{hint}")


def _fields(section: str) -> list[str]:
    return [each.name for each in dataclasses.fields(SECTIONS[section])]


def _meant(key: str) -> str:
    """Return a hint at the key that an unknown one most likely means, with its meaning; "" if no key is close."""
    section, _, field = key.rpartition(".")
    keys = [known for known in DEFAULTS if "." in known]
    near = closest(field, _fields(section)) if section in SECTIONS else ""
    found = (
        our_key(field)
        or next((known for known in keys if known.partition(".")[2] == field), "")
        or (f"{section}.{near}" if near else "")
    )
    if not found:
        return ""
    name, _, field = found.partition(".")
    return f" (did you mean {found}?): {first_sentence(field_docs(SECTIONS[name])[field])}"
