"""Page of all keys, docs/recipe-keys.md, made from the classes that read them: `python pipelines/train.py --keys`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from pipelines.config.field_docs import field_docs
from pipelines.config.paths import shown
from pipelines.config.recipe import DEFAULTS, PATHS, RECIPES, SECTIONS, load_recipe, shipped_recipes
from pipelines.config.synonyms import synonyms
from pipelines.config.toml import read_toml
from pipelines.reproduction.spec import CurvesFigure, Entry, ResponsesFigure, Suite
from pipelines.tuning.distributions import Distribution
from pipelines.tuning.space import Budget, Final, SchedulerTable, SearcherTable, Space
from resnet_core.config import VARIANTS

PAGE = RECIPES.parents[1] / "docs" / "recipe-keys.md"
_HEAD = """# Keys of recipes, spaces and suites

Written by `python pipelines/train.py --keys > docs/recipe-keys.md`; a test fails if the page and the code differ.

A recipe is a TOML file of sections. `python pipelines/train.py --show RECIPE` prints one with every key.

```toml
[optim]                    # a section
lr_per_256 = 0.2           # a key; on the command line: --set optim.lr_per_256=0.2
```

Every key but `data.uri` has a default. Relative paths begin in the folder of the command; in a Ray job,
in `RESNET_RAY_STORAGE` or, if that is not set, in `~/resnet-ray`. An unknown key is an error that names
the nearest key, also for names from other frameworks (`lr`, `epochs`, `batch_size`). The shipped
recipes: [recipes.md](recipes.md).
"""
_TITLES = {
    "model": "which network",
    "prepare": "how images become a data set (`prepare.py`, `data.source`)",
    "data": "which data set, and how a stored image becomes an input",
    "augment": "random changes of training images, by batch",
    "optim": "batch size, learning rate, optimizer, loss, averages of weights",
    "loss": "weights of classes and of hard images",
    "schedule": "length of the training, and the learning rate over time",
    "curriculum": "image sizes and depths that change during training",
    "compute": "precision and speed",
    "run": "place, hardware, logging; only `seed` changes the weights",
}
_EXAMPLES: dict[str, Any] = {
    "model.in_channels": 3,
    "model.init_from": "torchvision://resnet50/IMAGENET1K_V2",
    "model.freeze": "layer2",
    "model.depths": [3, 3, 3],
    "model.drop_path": 0.1,
    "model.dropout": 0.2,
    "prepare.form": "jpeg",
    "prepare.size": 256,
    "prepare.quality": 95,
    "prepare.shard_mb": 64,
    "prepare.min_shards": 8,
    "prepare.holdout": 0.2,
    "prepare.max_bad_images": 10,
    "prepare.seed": 1,
    "data.uri": "data/photos",
    "data.source": "photos",
    "data.ratio": [0.9, 1.1],
    "data.jitter_max": 512,
    "data.jitter_min": 288,
    "data.train_split": "train",
    "data.eval_split": "test",
    "data.test_split": "test",
    "prepare.validation": 0.2,
    "data.task_mb": 64,
    "data.max_bad_samples": 10,
    "data.cache_dir": "/mnt/cache",
    "data.cache_gb": 200.0,
    "data.policy_magnitude_std": 0.5,
    "augment.cutmix_share": 0.3,
    "augment.mix_prob": 0.8,
    "augment.erase_area": [0.02, 0.2],
    "augment.erase_aspect": [0.5, 2.0],
    "optim.head_lr_factor": 10.0,
    "optim.layer_decay": 0.75,
    "optim.head_first": 1,
    "optim.beta1": 0.95,
    "optim.beta2": 0.99,
    "optim.trust_coefficient": 0.002,
    "optim.clip_norm": 1.0,
    "optim.sam_rho": 0.05,
    "optim.sam_every": 2,
    "optim.average_from": 75,
    "optim.eps": 1e-6,
    "optim.ema_decay": 0.9999,
    "augment.mean": [0.5, 0.5, 0.5],
    "augment.std": [0.25, 0.25, 0.25],
    "loss.class_weights": "auto",
    "loss.focal_gamma": 2.0,
    "data.sampling_power": 0.5,
    "data.sampling_passes": 4,
    "curriculum.until": [60, 120],
    "curriculum.image_size": [128, 160, 192],
    "curriculum.model": ["resnet18", "resnet34", "resnet34"],
    "schedule.early_stopping_patience": 10,
    "schedule.early_stopping_min_delta": 0.001,
    "schedule.drop_path_ramp": 30,
    "schedule.gamma": 0.2,
    "schedule.points": [0, 30, 90],
    "schedule.factors": [0.1, 1.0, 0.0],
    "compute.all_reduce": "bf16",
    "compute.microbatch_size": 64,
    "compute.threads_per_worker": 4,
    "run.name": "first-try",
    "run.home": "s3://bucket/runs",
    "run.experiment": "flowers",
    "run.register_as": "flowers",
    "run.gate_margin": 0.02,
    "run.seed": 1,
    "run.num_workers": [4, 8],
    "run.cpus_per_worker": 4,
    "run.use_gpu": True,
    "run.max_failures": 10,
    "run.eval_every_epochs": 5,
    "run.eval_at": [1, 10, 90],
    "run.keep_best": 3,
    "run.relative_to": "/home/me/resnet-ray",
}
Tables = Mapping[str, tuple[type[BaseModel], str]]
"""Name of a table -> the class that reads it, its title."""
_SPACE: Tables = {
    "": (Space, "of the file itself"),
    "space.KEY": (
        Distribution,
        "values of a recipe's key, or named settings that change together",
    ),
    "budget": (Budget, "what the study may cost"),
    "scheduler": (SchedulerTable, "how trials are stopped early"),
    "searcher": (SearcherTable, "how values are proposed"),
    "final": (Final, "what `--finalize` trains"),
}
_SUITE: Tables = {
    "": (Suite, "of the file itself"),
    "[entry]": (Entry, "one row: a recipe, once per seed"),
    "[curves]": (CurvesFigure, "a figure of errors over the run"),
    "[responses]": (ResponsesFigure, "a figure of the layers' responses"),
}
_CHOICES = 12  # most values that a cell lists
_NAMES: dict[Any, str] = {int: "integer", float: "number", bool: "true or false", str: "text", Any: "value"}
_PLURALS = {
    "integer": "integers",
    "number": "numbers",
    "text": "texts",
    "name": "names",
    "value": "values",
    "table": "tables",
}
_HEADS = ("key", "type", "default", "meaning", "example")


class KeyRow(NamedTuple):
    """Row of the page: one key."""

    key: str
    kind: str
    default: str
    meaning: str
    example: str


def to_markdown() -> str:
    """Return the whole page."""
    parts = [_HEAD]
    for section, title in _TITLES.items():
        rows = [row for row in recipe_rows() if row.key.startswith(f"{section}.")]
        parts.append(f"## `[{section}]`: {title}\n\n{_table(rows)}")
    networks = ", ".join(f"`{name}`" for name in VARIANTS)
    parts.append(f"Names of networks (`model.name`): {networks}.\n")
    parts.append("## Names in other frameworks\n\n" + _synonym_table())
    parts.append(f"## Keys of a space\n\nFor `tune.py` ([tuning.md](tuning.md)).\n\n{_models(_SPACE)}")
    parts.append(f"## Keys of a suite\n\nFor `reproduce.py` ([reproduce.md](reproduce.md)).\n\n{_models(_SUITE)}")
    return "\n".join(parts)


def recipe_rows() -> Iterator[KeyRow]:
    """Yield every key of a recipe."""
    shipped = _shipped_values()
    for name, section in SECTIONS.items():
        hints, docs = get_type_hints(section), field_docs(section)
        for field in dataclasses.fields(section):
            key = f"{name}.{field.name}"
            example = _EXAMPLES.get(key, shipped.get(key, _other(hints[field.name], DEFAULTS[key])))
            kind = "path or URI" if key in PATHS else _kind(hints[field.name])
            yield KeyRow(key, kind, _value(DEFAULTS[key]), docs[field.name], _value(example))


def _shipped_values() -> dict[str, Any]:
    """Return, by key, the first value other than the default that a shipped recipe has."""
    found: dict[str, Any] = {}
    for file in sorted(RECIPES.glob("*.toml")):
        for section, keys in read_toml(file).items():
            for key, value in keys.items():
                if value != DEFAULTS[f"{section}.{key}"]:
                    found.setdefault(f"{section}.{key}", value)
    return found


def _other(hint: Any, default: Any) -> Any:
    """Return a value other than the default, if the type has one."""
    match default:
        case bool():
            return not default
        case int():
            return 2 * default or 1
        case float():
            return default / 2 or 0.1
    others = [each for each in _flat(hint) if each not in ("", default)]
    return others[0] if others else default


def _flat(hint: Any) -> list[Any]:
    """Return the values of a Literal; [] for another type."""
    return list(get_args(hint)) if get_origin(hint) is Literal else []


def _kind(hint: Any) -> str:
    """Return the type in words."""
    origin, arguments = get_origin(hint), [each for each in get_args(hint) if each is not type(None)]
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return ", ".join(map(_value, arguments)) if len(arguments) <= _CHOICES else "name"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_kind, arguments))
    if origin is tuple and arguments[-1] is ...:
        kind = _kind(arguments[0])
        return f"list of {_PLURALS.get(kind, kind)}"
    if origin is tuple:
        return f"[{', '.join(map(_kind, arguments))}]"
    return _NAMES.get(hint, "table")


def _value(value: Any) -> str:
    """Return a value in backticks, as TOML writes it."""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _table(rows: Iterable[KeyRow]) -> str:
    cells = [_HEADS, tuple("---" for _ in _HEADS), *((f"`{row.key}`", *row[1:]) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells) + "\n"


def _synonym_table() -> str:
    keys = [key for key in DEFAULTS if synonyms(key)]
    lines = [f"| `{key}` | {', '.join(f'`{word}`' for word in synonyms(key))} |" for key in keys]
    return "\n".join(["| ours | theirs |", "| --- | --- |", *lines]) + "\n"


def _models(models: Tables) -> str:
    parts = []
    for table, (model, title) in models.items():
        name = f"`[{table}]`: " if table else "Keys "
        parts.append(f"### {name}{title}\n\n{_model_table(model)}")
    return "\n".join(parts)


def _model_table(model: type[BaseModel]) -> str:
    docs = field_docs(model)
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if name == "name" and "read from" in docs[name]:  # taken from the file's path
            continue
        default = "required" if field.is_required() else _default(field.default)
        lines.append(f"| `{name}` | {_kind(field.annotation)} | {default} | {docs[name]} |")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    return "none" if value is None else _value(value)


def listing() -> str:
    """Return a line per recipe: name, network, data set, and the first sentence of the file's comment."""
    rows = [("recipe", "network", "data", "about")]
    for name in shipped_recipes():
        recipe = load_recipe(name)
        rows.append((name, recipe.model.name, shown(recipe.data.uri), _about(name)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _about(name: str) -> str:
    lines = (RECIPES / f"{name}.toml").read_text().splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    text = re.sub(r" \([^)]*\)", "", " ".join(line.lstrip("# ") for line in comment))
    return re.split(r"(?<=[^.])\.(?: |$)", text, maxsplit=1)[0]
