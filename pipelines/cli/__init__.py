"""The command line that all pipelines share: `RECIPE --set section.key=value …`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from rich.console import Console

from infra import errors
from pipelines.config import DEMO, paths
from pipelines.config.sections import UseGpu

_INTERRUPTED = "interrupted; nothing finished is lost: run the same command again"


def run(main: Callable[[], int | None], interrupted: str = _INTERRUPTED) -> None:
    """Call `main` and exit, as `infra.errors.run` does.

    Neither this process nor any that it starts unpickles files that MLflow stores.
    """
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    errors.run(main, interrupted)


_KEYS = "all keys: docs/recipe-keys.md"


def console() -> Console:
    """Return a console that prints text unchanged.

    Names that users choose may contain [brackets] and :colons:, which rich would read as markup.
    """
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False)


def recipe_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the two arguments of every pipeline that runs a recipe."""
    parser = argparse.ArgumentParser(description=description)
    text = f"file or shipped name (default: {DEMO})"
    parser.add_argument("recipe", nargs="?", default=DEMO, metavar="RECIPE", help=text)
    add_set(parser)
    return parser


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add `--set section.key=value`, which may be repeated."""
    text = "change a key of the recipe (repeatable): --set schedule.length=3 --set data.uri=data/photos"
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="section.key=value", help=f"{text}; {_KEYS}"
    )


def add_estimate(parser: argparse.ArgumentParser) -> None:
    """Add the options of `--dry-run`."""
    group = parser.add_argument_group("with --dry-run")
    group.add_argument("--instance", default="", metavar="TYPE", help="AWS instance type (default: this machine)")
    group.add_argument("--price", type=float, metavar="DOLLARS", help="price of a machine's hour")
    group.add_argument("--images", type=int, default=0, help="training images, if the data set is not there yet")
    group.add_argument("--classes", type=int, default=0, help="classes, if the data set is not there yet")


def add_use_gpu(parser: argparse.ArgumentParser) -> None:
    """Add `--use-gpu auto|true|false`, with the values of `run.use_gpu`."""
    text = "use GPUs; auto (default): if the cluster has any or may get them"
    parser.add_argument("--use-gpu", choices=("auto", "true", "false"), default="auto", help=text)


def add_home(parser: argparse.ArgumentParser, when: str = "") -> None:
    """Add `--home`, the folder of MLflow's database. `when` says with which options."""
    text = f"{when}folder of MLflow's database, if MLFLOW_TRACKING_URI is not set"
    parser.add_argument("--home", default="runs", type=paths.destination_on_disk, help=text)


def use_gpu(arguments: argparse.Namespace) -> UseGpu:
    """Return the value of the option that `add_use_gpu` adds."""
    return "auto" if arguments.use_gpu == "auto" else arguments.use_gpu == "true"


def local_home(home: str) -> str:
    """Return the folder of MLflow's database if MLFLOW_TRACKING_URI is not set: `home`, or ./runs if that is on S3."""
    return paths.absolute("runs", paths.here().disk) if "://" in home else home
