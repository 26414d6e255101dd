"""The last lines of a run: what came of it, where it is, and the commands that go on from here, ready to paste."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipelines.data.quarantine import QUARANTINE
from pipelines.next_command import command, home_option, setting, ui_command
from pipelines.paths import shown
from pipelines.tuning.space import shipped
from pipelines.verdict import promote_command, registered

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.outcome import Outcome
    from pipelines.recipe import Recipe


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
    if recipe.name in shipped():  # a space of the same name searches this recipe
        yield f"tune        {command('tune', recipe.name, *_same_places(recipe))}"


def _same_places(recipe: Recipe) -> list[str]:
    """The settings by which a study uses the run's data set, home and registered model."""
    data, home, model = shown(recipe.data.uri), shown(recipe.run.home), recipe.run.register_as
    return [
        *setting("data.uri", data),
        *(setting("run.home", home) if home != "runs" else []),
        *(setting("run.register_as", model) if model else []),
    ]


def _folder(recipe: Recipe) -> str:
    return shown(f"{recipe.run.home}/{recipe.run_name}")
