"""Register a run's best checkpoint: `python pipelines/register.py RUN_FOLDER [--name NAME] [--step N]`.

The gate compares the new version with the champion, image by image on the same data. If the version is not worse, the
alias `champion` moves to it. `--rollback NAME` restores the previous champion, `--promote NAME VERSION` promotes any
version, and `--history NAME` lists the champions. After a kill, the same command finishes the work.
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
from infra.registry.champion import check_movable, promote, roll_back
from infra.registry.versions import load
from infra.tracking.client import resolve_tracking
from pipelines import cli
from pipelines.cli.verdict import promote_command, verdict
from pipelines.config import paths
from pipelines.registry.champion import history
from pipelines.registry.registration import RegisterRequest, register_run


def main() -> None:
    arguments = _parser().parse_args()
    console = cli.console()
    tracking = resolve_tracking(arguments.home)
    if arguments.rollback:
        out, version = roll_back(tracking, arguments.rollback)
        console.print(f"champion: {version.uri}, in place of version {out}")
    elif arguments.promote:
        name, number = arguments.promote
        check_movable(tracking, name)  # before the model is downloaded and run
        version = load(tracking, f"models:/{name}/{number}").version
        promote(tracking, version)
        console.print(f"champion: {version.uri}")
    elif arguments.history:
        console.print(history(tracking, arguments.history))
    elif arguments.run:
        wanted = RegisterRequest(
            run=arguments.run,
            **{name: getattr(arguments, name) for name in ("name", "step", "data", "margin")},
            use_gpu=cli.use_gpu(arguments),
        )
        version, decision, home = register_run(wanted, console)
        console.print(verdict(version.uri, champion=decision.promote, reason=decision.reason))
        if not decision.promote:
            console.print(f"promote     {promote_command(version.uri, home)}")
    else:
        raise UserError("name the folder of a run, or --rollback NAME, --promote NAME VERSION or --history NAME")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Register a run's best checkpoint, and promote it if it is not worse.")
    text = "folder or s3://bucket/prefix of a run"
    parser.add_argument("run", nargs="?", metavar="RUN_FOLDER", type=paths.origin, help=text)
    parser.add_argument("--name", default="", help="registered model (default: the recipe's run.register_as)")
    parser.add_argument("--step", type=int, help="checkpoint of this step instead of the best one")
    text = "current URI of the run's data set (default: the recipe's data.uri)"
    parser.add_argument("--data", default="", metavar="URI", type=paths.origin, help=text)
    text = "loss of accuracy that the gate must rule out, 0 to 1 (default: the recipe's run.gate_margin)"
    parser.add_argument("--margin", type=float, help=text)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--rollback", metavar="NAME", help="make the previous champion the champion again")
    instead.add_argument("--promote", nargs=2, metavar=("NAME", "VERSION"), help="promote a version without the gate")
    instead.add_argument("--history", metavar="NAME", help="list the champions and when they changed")
    cli.add_home(parser, "with --rollback, --promote, --history: ")
    cli.add_use_gpu(parser)
    return parser


if __name__ == "__main__":
    cli.run(main)
