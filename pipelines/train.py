"""Train: `python pipelines/train.py [RECIPE] [--set section.key=value …]`.

RECIPE is a TOML file or the name of a shipped one; without it, the embedded demo. After any interruption the same
command goes on from the last checkpoint, in the same MLflow run; once finished it says so and does nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines import cli

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.outcome import Outcome
    from pipelines.recipe import Recipe


def main() -> None:
    arguments = cli.recipe_parser("Train, evaluate and register the model that a recipe describes.").parse_args()
    console = cli.console()
    console.print(f"starting {arguments.recipe}")  # before the imports, which take seconds on a busy machine
    from pipelines.driver import train
    from pipelines.recipe import load_recipe, parse_overrides

    recipe = load_recipe(arguments.recipe, parse_overrides(arguments.settings))
    _summarise(console, recipe, train(recipe, console))


def _summarise(console: Console, recipe: Recipe, outcome: Outcome) -> None:
    from pipelines.data.quarantine import QUARANTINE
    from pipelines.next_command import command, home_option, ui_command
    from pipelines.paths import shown
    from pipelines.verdict import promote_command, registered

    for line in outcome.lines():
        console.print(line)
    if outcome.data_limit:
        console.print(f"data        {outcome.data_limit}")
    if outcome.retries:
        console.print(f"storage     {outcome.retries:,} requests had to be repeated")
    if outcome.bad_samples:
        report = f"{recipe.run.home}/{recipe.run_name}/{QUARANTINE}"
        console.print(f"bad data    {outcome.bad_samples:,} samples left out, named in {shown(report)}")
    if outcome.model:
        console.print(f"registered  {registered(outcome.model, champion=outcome.champion, reason=outcome.reason)}")
    console.print(f"run folder  {shown(f'{recipe.run.home}/{recipe.run_name}')}   (MLflow run {outcome.run_id})")
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        console.print(f"MLflow UI   {ui_command(recipe.run.home)}")
    if outcome.model:
        model = f"{outcome.model.rpartition('/')[0]}@champion" if outcome.champion else outcome.model
        options = ["--model", model, *home_option(recipe.run.home)]
        console.print(f"classify    {command('predict', shown(outcome.example), *options)}")
        if not outcome.champion:
            console.print(f"promote     {promote_command(outcome.model, recipe.run.home)}")


if __name__ == "__main__":
    cli.run(main)
