"""Train: `python pipelines/train.py [RECIPE] [--set section.key=value …]`.

RECIPE is a TOML file or the name of a shipped one; without it, the embedded demo. After any interruption the same
command goes on from the last checkpoint, in the same MLflow run; once finished it says so and does nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console

from pipelines import cli
from pipelines.data.quarantine import QUARANTINE
from pipelines.driver import train
from pipelines.outcome import Outcome
from pipelines.paths import shown
from pipelines.recipe import Recipe, load_recipe, parse_overrides


def main() -> None:
    arguments = cli.recipe_parser("Train, evaluate and register the model that a recipe describes.").parse_args()
    recipe = load_recipe(arguments.recipe, parse_overrides(arguments.settings))
    console = Console(soft_wrap=True, highlight=False, markup=False)
    _summarise(console, recipe, train(recipe, console))


def _summarise(console: Console, recipe: Recipe, outcome: Outcome) -> None:
    console.print(f"test accuracy {outcome.accuracy:.2%} after {outcome.step} steps")
    if outcome.data_limit:
        console.print(f"data        {outcome.data_limit}")
    if outcome.retries:
        console.print(f"storage     {outcome.retries:,} requests had to be repeated")
    if outcome.bad_samples:
        report = f"{recipe.run.home}/{recipe.run_name}/{QUARANTINE}"
        console.print(f"bad data    {outcome.bad_samples:,} samples left out, named in {shown(report)}")
    if outcome.model:
        state = "champion" if outcome.champion else f"not champion: {outcome.reason}"
        console.print(f"registered  {outcome.model} ({state})")
    console.print(f"run folder  {shown(f'{recipe.run.home}/{recipe.run_name}')}   (MLflow run {outcome.run_id})")
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        home = shown(cli.local_home(recipe.run.home))
        console.print(f"MLflow UI   make ui{'' if home == 'runs' else f' RUNS={home}'}")
    if outcome.model:
        model = outcome.model.split("/")[1]
        image = shown(outcome.example) if "://" not in outcome.example else "IMAGE"
        console.print(f"classify    .venv/bin/python pipelines/predict.py {image} --model models:/{model}@champion")


if __name__ == "__main__":
    cli.run(main)
