"""The command line that all pipelines share: `RECIPE --set section.key=value …`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

from infra import errors
from pipelines import paths

if TYPE_CHECKING:
    from pipelines.inference import UseGpu

DEMO = "mnist5k"
"""The recipe that runs where none is named."""

_INTERRUPTED = "interrupted; nothing finished is lost: run the same command again"


def run(main: Callable[[], int | None], interrupted: str = _INTERRUPTED) -> None:
    """Call `main` and exit, as `infra.errors.run` does.

    No process of a pipeline, and none that it starts, unpickles what MLflow stores.
    """
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    errors.run(main, interrupted)


_KEYS = "all keys: docs/recipe-keys.md"


def console() -> Console:
    """Prints text as it is: what users name may hold [brackets] and :colons:, which rich would read as markup."""
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


def recipe_parser(description: str) -> argparse.ArgumentParser:
    """Parser with the two arguments of every pipeline that runs a recipe."""
    parser = argparse.ArgumentParser(description=description)
    told = f"file or shipped name (default: {DEMO})"
    parser.add_argument("recipe", nargs="?", default=DEMO, metavar="RECIPE", help=told)
    add_set(parser)
    return parser


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add `--set section.key=value`, given any number of times."""
    told = "change a key of the recipe, again for more: --set schedule.length=3 --set data.uri=data/photos"
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="section.key=value", help=f"{told} ({_KEYS})"
    )


def add_use_gpu(parser: argparse.ArgumentParser) -> None:
    """Add `--use-gpu auto|true|false`, with the words of `run.use_gpu`."""
    told = "compute on GPUs; auto (default) takes them where the cluster has any, or may get them"
    parser.add_argument("--use-gpu", choices=("auto", "true", "false"), default="auto", help=told)


def use_gpu(arguments: argparse.Namespace) -> UseGpu:
    """Return what `add_use_gpu`'s option was given."""
    return "auto" if arguments.use_gpu == "auto" else arguments.use_gpu == "true"


def local_home(home: str) -> str:
    """Return where MLflow's database is without MLFLOW_TRACKING_URI: with the runs, or in ./runs if those are on S3."""
    return paths.absolute("runs", paths.here().disk) if "://" in home else home
