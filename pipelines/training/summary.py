"""Last lines of a run: its result, where it is, and the next commands, ready to paste."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from infra.storage import Store
from pipelines.cli.next_command import command, home_option, setting, ui_command
from pipelines.cli.verdict import promote_command, registered
from pipelines.config.paths import shown
from pipelines.config.recipe import SPACES
from pipelines.data.prepare.report import read_report, report_lines
from pipelines.data.prepare.source import TEST
from pipelines.data.shards.bad_records import QUARANTINE
from pipelines.data.shards.manifest import Manifest
from pipelines.training.preview import data_warnings
from pipelines.training.recipe_for_data import train_command

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.config.recipe import Recipe
    from pipelines.training.result import Outcome


def summarise(console: Console, recipe: Recipe, outcome: Outcome) -> None:
    """Print the result of a finished run and its next commands."""
    for line in (*outcome.lines(), *_notes(recipe, outcome), *_places(recipe, outcome), *_next(recipe, outcome)):
        console.print(line)


def _notes(recipe: Recipe, outcome: Outcome) -> Iterator[str]:
    if outcome.data_limit:
        yield f"data        {outcome.data_limit}"
    if outcome.retries:
        yield f"storage     {outcome.retries:,} requests had to be repeated"
    if outcome.bad_samples:
        yield f"bad data    {outcome.bad_samples:,} samples left out, named in {_folder(recipe)}/{QUARANTINE}"


def _places(recipe: Recipe, outcome: Outcome) -> Iterator[str]:
    if outcome.model:
        yield f"registered  {registered(outcome.model, champion=outcome.champion, reason=outcome.reason)}"
    yield f"run folder  {_folder(recipe)}   (MLflow run {outcome.run_id})"
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        yield f"MLflow UI   {ui_command(recipe.run.home)}"


def _next(recipe: Recipe, outcome: Outcome) -> Iterator[str]:
    yield f"evaluate    {command('evaluate', _folder(recipe))}"
    if outcome.model:
        model = f"{outcome.model.rpartition('/')[0]}@champion" if outcome.champion else outcome.model
        options = ["--model", model, *home_option(recipe.run.home)]
        yield f"classify    {command('predict', shown(outcome.example), *options)}"
        yield f"serve       {command('serve', *options)}"
        if not outcome.champion:
            yield f"promote     {promote_command(outcome.model, recipe.run.home)}"
    if (SPACES / f"{recipe.name}.toml").exists():  # a search space of the same name tunes this recipe
        yield f"tune        {command('tune', recipe.name, *_same_places(recipe))}"


def _same_places(recipe: Recipe) -> list[str]:
    """Return the settings that give a study the run's data set, home and registered model."""
    data, home, model = shown(recipe.data.uri), shown(recipe.run.home), recipe.run.register_as
    return [
        *setting("data.uri", data),
        *(setting("run.home", home) if home != "runs" else []),
        *(setting("run.register_as", model) if model else []),
    ]


def _folder(recipe: Recipe) -> str:
    return shown(f"{recipe.run.home}/{recipe.run_name}")


def summarise_data_set(console: Console, store: Store, manifest: Manifest, dest: str) -> None:
    """Print what a data set holds, warnings about likely problems, and the command that trains on it."""
    splits = ", ".join(f"{rows:,} {split}" for split, rows in manifest.splits.items())
    size = f"{len(manifest.shards)} shards, {manifest.total_bytes / 1e6:,.1f} MB"
    console.print(f"data set {manifest.name}: {splits} images of {len(manifest.class_names)} classes in {size}")
    report = read_report(store)
    for line in report.class_lines(manifest.class_names) if report else ():
        console.print(line)
    for line in report_lines(store):
        console.print(line)
    for line in data_warnings(store, manifest):
        console.print(line)
    if TEST in manifest.splits:
        console.print(f"next: {train_command(store, manifest, dest)}")
    else:
        console.print(
            "no test split, which training needs: no class has enough images to hold some out. Add images or raise "
            "prepare.holdout, and prepare into another folder"
        )
