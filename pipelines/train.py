"""Train: `python pipelines/train.py [RECIPE] [--set section.key=value …]`.

RECIPE is a TOML file or the name of a shipped one (`--list`); the default is the embedded demo. `--show` prints a
recipe with all its keys, `--keys` the meaning of each key, `--dry-run` what a run would take. After an interruption,
the same command resumes in the same MLflow run; once the run is finished, it does nothing and says so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.interruption import listen

    listen()

import infra.cluster
from pipelines import cli
from pipelines.training import WORKER_MODULES


def main() -> None:
    arguments = _parser().parse_args()
    if _shown(arguments):
        return
    console = cli.console()
    verb = "estimating" if arguments.dry_run else "starting"
    console.print(f"{verb} {arguments.recipe}")  # before the imports, which take seconds on a busy machine
    from pipelines.config.recipe import load_recipe, parse_overrides

    recipe = load_recipe(arguments.recipe, parse_overrides(arguments.settings))
    if arguments.dry_run:
        from pipelines.estimate.dry_run import dry_run, request_of

        dry_run(recipe, request_of(arguments), console)
        return
    infra.cluster.warm_up(WORKER_MODULES)  # beside this process's own imports
    from pipelines.training.driver import train
    from pipelines.training.summary import summarise

    summarise(console, recipe, train(recipe, console))


def _parser() -> argparse.ArgumentParser:
    parser = cli.recipe_parser("Train, evaluate and register the model that a recipe describes.")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="show the shipped recipes; train nothing")
    text = "show the recipe with --set and all defaults, as TOML that train.py reads; train nothing"
    instead.add_argument("--show", action="store_true", help=text)
    instead.add_argument("--keys", action="store_true", help="show every key with its meaning (docs/recipe-keys.md)")
    text = "show steps, memory, storage, time and cost, and make every check of a run; start nothing"
    instead.add_argument("--dry-run", action="store_true", help=text)
    cli.add_estimate(parser)
    return parser


def _shown(arguments: argparse.Namespace) -> bool:
    """Print what --list, --show or --keys asks for; return True if one of them was given."""
    if arguments.list:
        from pipelines.cli_reference import listing

        sys.stdout.write(listing())
    elif arguments.show:
        from pipelines.config.recipe import load_recipe, parse_overrides

        sys.stdout.write(load_recipe(arguments.recipe, parse_overrides(arguments.settings)).to_toml())
    elif arguments.keys:
        from pipelines.cli_reference import to_markdown

        sys.stdout.write(to_markdown())
    return bool(arguments.list or arguments.show or arguments.keys)


if __name__ == "__main__":
    cli.run(main)
