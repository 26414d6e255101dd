"""Reproduce published results: `python pipelines/reproduce.py SUITE [--set section.key=value …] [--only NAME]`.

SUITE is a TOML file of recipes, seeds and published figures, or the name of a shipped one. Every run is trained as by
`train.py`, with its own folder and MLflow run. After an interruption, the same command resumes; finished runs are not
repeated. Table and figures are rewritten after every run:

    RUN_HOME/suites/NAME/table.md, results.json, FIGURE.png
    RUN_HOME/suites/NAME/measured/RUN.json   what each run measured
    RUN_HOME/suites/NAME/suite.json          the suite's MLflow run
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.interruption import listen

    listen()

from infra.errors import UserError
from pipelines import cli
from pipelines.config.paths import shown
from pipelines.config.recipe import parse_overrides
from pipelines.reproduction.plan import plan_runs
from pipelines.reproduction.report import to_text
from pipelines.reproduction.runner import Reproduction, listing
from pipelines.reproduction.spec import load_suite, shipped


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.suite is None:
        raise UserError(f"name a suite: a TOML file, or one of {', '.join(shipped())}")
    suite = load_suite(arguments.suite)
    only = [suite.find(name).name for name in arguments.only]
    runs = plan_runs(suite, parse_overrides(arguments.settings))
    console = cli.console()
    if arguments.list:
        console.print(suite.title)
        console.print(listing(runs))
        return
    reproduction = Reproduction(suite, runs, console)
    run_id = reproduction.run(only)
    console.print(suite.title)
    console.print(to_text(suite, reproduction.measured))
    console.print(f"table and figures  {shown(reproduction.store.description)}   (MLflow run {run_id})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train a suite's missing runs; compare them with published results.")
    parser.add_argument("suite", nargs="?", metavar="SUITE", help=f"file, or shipped name: {', '.join(shipped())}")
    parser.add_argument("--list", action="store_true", help="show the suite's runs and their states; train nothing")
    text = "train only this entry (repeatable); the table also has earlier results of the others"
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=text)
    cli.add_set(parser)
    return parser


if __name__ == "__main__":
    cli.run(main)
