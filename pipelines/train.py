"""Train: `python pipelines/train.py [RECIPE] [--set section.key=value …]`.

RECIPE is a TOML file or the name of a shipped one (`--list`); without it, the embedded demo. `--show` prints a recipe
with all its keys, `--keys` what each means. After any interruption the same command goes on from the last checkpoint,
in the same MLflow run; once finished it says so and does nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.interruption import listen

    listen()

from pipelines import cli

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.outcome import Outcome
    from pipelines.recipe import Recipe


def main() -> None:
    arguments = _parser().parse_args()
    if _shown(arguments):
        return
    console = cli.console()
    console.print(f"starting {arguments.recipe}")  # before the imports, which take seconds on a busy machine
    from pipelines.driver import train
    from pipelines.recipe import load_recipe, parse_overrides

    recipe = load_recipe(arguments.recipe, parse_overrides(arguments.settings))
    _summarise(console, recipe, train(recipe, console))


def _parser() -> argparse.ArgumentParser:
    parser = cli.recipe_parser("Train, evaluate and register the model that a recipe describes.")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="show the shipped recipes; train nothing")
    told = "show the recipe with --set and every default, as TOML that train.py takes; train nothing"
    instead.add_argument("--show", action="store_true", help=told)
    instead.add_argument("--keys", action="store_true", help="show every key with its meaning (docs/recipe-keys.md)")
    return parser


def _shown(arguments: argparse.Namespace) -> bool:
    """Print what was asked for in place of training; return whether anything was."""
    if arguments.list:
        from pipelines.recipe_list import listing

        sys.stdout.write(listing())
    elif arguments.show:
        from pipelines.recipe import load_recipe, parse_overrides

        sys.stdout.write(load_recipe(arguments.recipe, parse_overrides(arguments.settings)).to_toml())
    elif arguments.keys:
        from pipelines.recipe_keys import to_markdown

        sys.stdout.write(to_markdown())
    return bool(arguments.list or arguments.show or arguments.keys)


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
