"""Check that the run in a folder is the one that a recipe describes: the same recipe on the same data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infra.errors import UserError
from infra.storage import open_store
from pipelines.checkpoint import RUN, RunFolder
from pipelines.config.paths import shown
from pipelines.config.recipe import DEFAULTS, NOT_TRAINED, Recipe, build_recipe
from pipelines.data.shards.manifest import NAME_LENGTH, Manifest

RUN_KEYS = ("run_id", "data_digest", "trajectory")  # of run.json
_AUTO_PRECISION = ("compute.precision", "auto")  # "auto" resumes in the precision in which the run began


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """The data set that a run was trained on."""

    digest: str
    uri: str  # "" = not recorded

    def __str__(self) -> str:
        name = self.digest[:NAME_LENGTH]
        return f"data set {name} at {shown(self.uri)}" if self.uri else f"data set {name}"


def check_same_run(folder: RunFolder, recipe: Recipe, manifest: Manifest | None) -> None:
    """Compare the run in the folder, and each of its checkpoints, with the recipe and its data set.

    Args:
        folder: the run's folder.
        recipe: the recipe as the user gives it now.
        manifest: the manifest at `recipe.data.uri`; None if there is no data set any more, then the URIs are compared.

    Raises:
        UserError: the run, or a checkpoint, began with another recipe or data set.
    """
    known = folder.read_json(RUN, *RUN_KEYS)
    if known is not None:
        _check(f"run {recipe.run_name}", _data_of_run(folder, known), known["trajectory"], recipe, manifest)
    for step in folder.steps():
        head = folder.head(step)
        if head is not None:
            began = build_recipe({}, head["recipe"], where=f"checkpoint {step}").trajectory()
            data = DataSet(digest=head["data_digest"], uri=head["recipe"]["data.uri"])
            _check(f"checkpoint {step} of run {recipe.run_name}", data, began, recipe, manifest)


def trained_on(folder: RunFolder) -> DataSet | None:
    """Return the data set of the run in the folder; None if the run has not begun."""
    known = folder.read_json(RUN, *RUN_KEYS)
    return None if known is None else _data_of_run(folder, known)


def _data_of_run(folder: RunFolder, known: dict[str, Any]) -> DataSet:
    """Read the run's data set from run.json. The first format had no URI there; checkpoints have it."""
    uri = known.get("data_uri", "")
    heads = (folder.head(step) for step in reversed(folder.steps())) if not uri else ()
    head = next((head for head in heads if head is not None), None)
    return DataSet(digest=known["data_digest"], uri=head["recipe"]["data.uri"] if head else uri)


def _check(what: str, data: DataSet, began: dict[str, Any], recipe: Recipe, manifest: Manifest | None) -> None:
    hint = "choose another run.name or run.home, or undo the change"
    if manifest and data.digest != manifest.digest:
        name = f"{recipe.name}-{manifest.name[:8]}"
        remedy = hint if recipe.run.name else f"add --set run.name={name} to train on it too"
        raise UserError(f"{what} was trained on {data}, but {shown(recipe.data.uri)} holds {manifest.name}: {remedy}")
    if manifest is None and data.uri and open_store(data.uri).uri != open_store(recipe.data.uri).uri:
        raise UserError(
            f"{what} was trained on {data}, and there is no data set at {shown(recipe.data.uri)} to compare it with: "
            f"prepare one there, or name the run's own data set with --set data.uri={shown(data.uri)}"
        )
    now = recipe.trajectory()
    for key in {**began, **now}.keys() - NOT_TRAINED:
        before, after = (keys.get(key, DEFAULTS.get(key)) for keys in (began, now))
        if before != after and (key, after) != _AUTO_PRECISION:
            raise UserError(f"{what} began with another recipe ({key} = {before!r}, now {after!r}): {hint}")
