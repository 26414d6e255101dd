"""The command line that all pipelines share: `RECIPE --set section.key=value …`, one clear line for a user's error."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from infra.errors import UserError

USER_ERROR_STATUS = 2


def run(main: Callable[[], int | None]) -> None:
    """Call `main` and exit; a `UserError` becomes one line on stderr and status 2, a bug keeps its traceback.

    No process of a pipeline, and none that it starts, unpickles what MLflow stores.
    """
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)
    except KeyboardInterrupt:
        print("interrupted; nothing finished is lost: run the same command again", file=sys.stderr)
        sys.exit(130)


def recipe_parser(description: str) -> argparse.ArgumentParser:
    """Parser with the two arguments of every pipeline that runs a recipe."""
    from pipelines.recipe import DEMO

    parser = argparse.ArgumentParser(description=description)
    told = f"file or shipped name (default: {DEMO})"
    parser.add_argument("recipe", nargs="?", default=DEMO, metavar="RECIPE", help=told)
    add_set(parser)
    return parser


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add `--set section.key=value`, given any number of times."""
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="section.key=value")


def local_home(home: str) -> str:
    """Where MLflow's database is without MLFLOW_TRACKING_URI: beside the runs, or in runs/ where those are on S3."""
    return "runs" if "://" in home else home
