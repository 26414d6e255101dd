"""Tune: `python pipelines/tune.py SPACE [--set section.key=value …] [--list] [--retry-failed] [--finalize]`.

SPACE is a TOML file of what differs between the trials of a study, or the name of a shipped one (docs/tuning.md). Every
trial is what `train.py` makes of its recipe: its own folder, its own MLflow run below the study's. After any
interruption the same command goes on: what is over is not run again, what was not goes on from its checkpoint.

    RUN_HOME/studies/NAME/table.md, results.json, parallel.png, responses.png, curves.png
    RUN_HOME/studies/NAME/study.json, trials/NNN.json   what a restart reads
    RUN_HOME/studies/NAME/winner.toml                   by --finalize: the winner's recipe, as train.py runs it
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
from pipelines.next_command import command
from pipelines.paths import shown
from pipelines.recipe import parse_overrides
from pipelines.tuning.plan import Plan
from pipelines.tuning.report import best, ranked, to_markdown
from pipelines.tuning.space import load_space, shipped
from pipelines.tuning.study import Study


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.space is None:
        raise UserError(f"name a space: a TOML file, or one of {', '.join(shipped())}")
    plan = Plan(load_space(arguments.space), parse_overrides(arguments.settings))
    plan.check()
    console = cli.console()
    study = Study(plan, console)
    if arguments.list:
        console.print(_listing(study))
        return
    if arguments.retry_failed:
        study.ledger.retry_failed()
    run_id = study.run()
    console.print(to_markdown(plan, study.ledger.trials))
    winner = best(study.ledger.trials)
    if winner is None:
        reason = study.ledger.trials[0].reason
        raise UserError(
            f"no trial of study {plan.space.name} has reported anything: {reason}. Once that is put right, "
            "--retry-failed tries them again"
        )
    if arguments.finalize:
        from pipelines.tuning.finalize import finalize

        finalize(study, winner, run_id)
    console.print(f"table and figures  {shown(study.store.description)}   (MLflow run {run_id})")
    if not arguments.finalize:
        settings = [part for text in arguments.settings for part in ("--set", text)]
        console.print(f"train the winner   {command('tune', arguments.space, *settings, '--finalize')}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Search a space of recipes under a budget of compute.")
    parser.add_argument("space", nargs="?", metavar="SPACE", help=f"file, or shipped name: {', '.join(shipped())}")
    parser.add_argument("--list", action="store_true", help="show the study's trials and where they stand; run nothing")
    told = "try trials that failed again, each from its last checkpoint, under its number"
    parser.add_argument("--retry-failed", action="store_true", help=told)
    told = "write the winner's recipe, train it at the full budget, and offer it to the registry's gate"
    parser.add_argument("--finalize", action="store_true", help=told)
    cli.add_set(parser)
    return parser


def _listing(study: Study) -> Table:
    keys, space = list(study.plan.space.space), study.plan.space
    heads = ["trial", "state", "reports", "accuracy", *(key.rpartition(".")[2] for key in keys)]
    table = Table(*heads, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for trial in ranked(study.ledger.trials):
        values = [str(trial.present[key]) for key in keys]
        reports = f"{trial.last}/{space.budget.reports}"
        table.add_row(
            f"{trial.number:03d}", trial.state, reports, f"{trial.accuracy:.2%}" if trial.reports else "-", *values
        )
    planned = space.trials - len(study.ledger)
    if planned:
        table.add_row("…", "not begun", f"{planned} trials")
    return table


if __name__ == "__main__":
    cli.run(main)
