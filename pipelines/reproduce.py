"""Reproduce published results: `python pipelines/reproduce.py SUITE [--set section.key=value …] [--only NAME]`.

SUITE is a TOML file of recipes x seeds with the published figure beside each, or the name of a shipped one. Every run
is what `train.py` makes of its recipe: its own folder, its own MLflow run. What is finished is not run again; after any
interruption the same command goes on. Table and figures are written anew after every run:

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

from rich.table import Table

from infra.errors import UserError
from pipelines import cli
from pipelines.paths import shown
from pipelines.recipe import parse_overrides
from pipelines.suite import load_suite, shipped
from pipelines.suite_plan import SuiteRun, plan_runs
from pipelines.suite_report import to_text
from pipelines.suite_run import Reproduction, outcome_of, run_folder


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
        console.print(_listing(runs))
        return
    reproduction = Reproduction(suite, runs, console)
    run_id = reproduction.run(only)
    console.print(suite.title)
    console.print(to_text(suite, reproduction.measured))
    console.print(f"table and figures  {shown(reproduction.store.description)}   (MLflow run {run_id})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run what a suite misses, and set it beside what was published.")
    parser.add_argument("suite", nargs="?", metavar="SUITE", help=f"file, or shipped name: {', '.join(shipped())}")
    parser.add_argument("--list", action="store_true", help="show the suite's runs and where they stand; run nothing")
    told = "train this entry only (again for more); the others are in the table as far as they have been run"
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=told)
    cli.add_set(parser)
    return parser


def _listing(runs: list[SuiteRun]) -> Table:
    table = Table("entry", "seed", "run", "state", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for run in runs:
        table.add_row(run.entry.name, str(run.seed), run.name, _state(run))
    return table


def _state(run: SuiteRun) -> str:
    outcome = outcome_of(run)
    if outcome:
        return f"finished, {outcome.step} steps"
    steps = run_folder(run).steps()
    return f"at step {steps[-1]}" if steps else "not begun"


if __name__ == "__main__":
    cli.run(main)
