"""Tune: `python pipelines/tune.py SPACE [--set section.key=value …] [--list] [--retry-failed] [--finalize]`.

SPACE is a TOML file of the values to search, or the name of a shipped one (docs/tuning.md). Every trial is trained as
by `train.py`, with its own folder and an MLflow run below the study's. After an interruption, the same command resumes
unfinished trials from their checkpoints; trials that are over are not repeated.

    RUN_HOME/studies/NAME/table.md, results.json, parallel.png, responses.png, curves.png
    RUN_HOME/studies/NAME/study.json, trials/NNN.json   the state that a restart reads
    RUN_HOME/studies/NAME/winner.toml                   with --finalize: the winner's recipe, for train.py
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
from pipelines.cli.next_command import command
from pipelines.config.paths import shown
from pipelines.config.recipe import parse_overrides
from pipelines.tuning.report import best, listing, to_markdown
from pipelines.tuning.space import load_space, shipped
from pipelines.tuning.study import Study, finalize
from pipelines.tuning.trial_recipes import StudyPlan


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.space is None:
        raise UserError(f"name a space: a TOML file, or one of {', '.join(shipped())}")
    plan = StudyPlan(load_space(arguments.space), parse_overrides(arguments.settings))
    plan.check()
    console = cli.console()
    study = Study(plan, console)
    if arguments.list:
        console.print(listing(plan, study.ledger))
        return
    if arguments.retry_failed:
        study.ledger.retry_failed()
    run_id = study.run()
    console.print(to_markdown(plan, study.ledger.trials))
    winner = best(study.ledger.trials)
    if winner is None:
        reason = study.ledger.trials[0].reason
        raise UserError(
            f"no trial of study {plan.space.name} has reported anything: {reason}. Fix that, then add "
            "--retry-failed to run them again"
        )
    if arguments.finalize:
        finalize(study, winner, run_id)
    console.print(f"table and figures  {shown(study.store.description)}   (MLflow run {run_id})")
    if not arguments.finalize:
        settings = [part for text in arguments.settings for part in ("--set", text)]
        console.print(f"train the winner   {command('tune', arguments.space, *settings, '--finalize')}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Search a space of recipes under a compute budget.")
    parser.add_argument("space", nargs="?", metavar="SPACE", help=f"file, or shipped name: {', '.join(shipped())}")
    parser.add_argument("--list", action="store_true", help="show the study's trials and their states; train nothing")
    text = "run failed trials again, each from its last checkpoint, with the same number"
    parser.add_argument("--retry-failed", action="store_true", help=text)
    text = "write the winner's recipe, train it with the settings of [final], and submit it to the registry's gate"
    parser.add_argument("--finalize", action="store_true", help=text)
    cli.add_set(parser)
    return parser


if __name__ == "__main__":
    cli.run(main)
