"""Whether the run in a folder is the one that a recipe describes: the same recipe, on the same data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infra.errors import UserError
from infra.storage import open_store
from pipelines.checkpoint import RUN, RunFolder
from pipelines.data.manifest import NAME_LENGTH, Manifest
from pipelines.paths import shown
from pipelines.recipe import DEFAULTS, NOT_TRAINED, Recipe, build_recipe

RUN_KEYS = ("run_id", "data_digest", "trajectory")  # of run.json
_GOES_ON = ("compute.precision", "auto")  # in whichever precision the run began


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
        folder: the run's.
        recipe: as the user gives it now.
        manifest: of `recipe.data.uri`; None where there is no data set any more, so that its place is compared.

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
    """The data set of the run in the folder; None where the run has not begun."""
    known = folder.read_json(RUN, *RUN_KEYS)
    return None if known is None else _data_of_run(folder, known)


def _data_of_run(folder: RunFolder, known: dict[str, Any]) -> DataSet:
    """By run.json; its first form did not name the place, but checkpoints do."""
    uri = known.get("data_uri", "")
    heads = (folder.head(step) for step in reversed(folder.steps())) if not uri else ()
    head = next((head for head in heads if head is not None), None)
    return DataSet(digest=known["data_digest"], uri=head["recipe"]["data.uri"] if head else uri)


def _check(what: str, data: DataSet, began: dict[str, Any], recipe: Recipe, manifest: Manifest | None) -> None:
    hint = "choose another run.name or run.home, or go back"
    if manifest and data.digest != manifest.digest:
        name = f"{recipe.name}-{manifest.name[:8]}"
        way_out = hint if recipe.run.name else f"add --set run.name={name} to train on it too"
        raise UserError(f"{what} was trained on {data}, {shown(recipe.data.uri)} holds {manifest.name}: {way_out}")
    if manifest is None and data.uri and open_store(data.uri).uri != open_store(recipe.data.uri).uri:
        raise UserError(
            f"{what} was trained on {data}, and {shown(recipe.data.uri)} holds no data set to compare with it: prepare "
            f"that first, or name the run's own with --set data.uri={shown(data.uri)}"
        )
    now = recipe.trajectory()
    for key in {**began, **now}.keys() - NOT_TRAINED:
        before, after = (keys.get(key, DEFAULTS.get(key)) for keys in (began, now))
        if before != after and (key, after) != _GOES_ON:
            raise UserError(f"{what} began with another recipe ({key} = {before!r}, now {after!r}): {hint}")
