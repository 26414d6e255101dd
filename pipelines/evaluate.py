"""Score a model on a whole split, every image once: `python pipelines/evaluate.py TARGET [--data URI] [--split test]`.

TARGET is a run's folder (its best checkpoint, or the one of --step), models:/NAME@champion or models:/NAME/VERSION.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console
from rich.table import Table

import infra.cluster
from infra.errors import UserError
from pipelines import cli
from pipelines.recipe import parse_overrides
from pipelines.scoring import SplitScore, score_model
from pipelines.targets import Request, Target, open_target


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a run or a registered model on a whole split, exactly.")
    parser.add_argument("target", metavar="TARGET", help="run's folder, models:/NAME@champion or models:/NAME/VERSION")
    parser.add_argument("--step", type=int, help="of a run: the checkpoint of this step instead of the best one")
    parser.add_argument("--data", metavar="URI", help="data set (default: the one it was trained on)")
    parser.add_argument("--split", help="split (default: the one it was evaluated on in training)")
    parser.add_argument("--home", default="runs", help="folder of MLflow's database without MLFLOW_TRACKING_URI")
    parser.add_argument("--json", metavar="FILE", help="write the scores there as well")
    cli.add_set(parser)
    arguments = vars(parser.parse_args())
    file, settings = arguments.pop("json"), arguments.pop("settings")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    target = open_target(Request(**arguments, crop=parse_overrides(settings)), console.print)
    infra.cluster.connect(min_cpus=1)
    with console.status(f"scoring the split {target.data.split}"):
        score = score_model(target.predict, target.data)
    console.print(_table(target, score))
    if file:
        _write_json(file, target, score)


def _table(target: Target, score: SplitScore) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("model", target.description),
        ("data set", f"{target.data.manifest.name}, split {target.data.split}"),
        ("images", f"{score.count:,}"),
        ("loss", f"{score.loss:.4f}"),
        ("top-1", f"{score.accuracy:.2%}"),
        ("top-5", f"{score.top5_accuracy:.2%}"),
    ):
        table.add_row(name, value)
    return table


def _write_json(file: str, target: Target, score: SplitScore) -> None:
    content = {
        "target": target.description,
        "data_digest": score.data_digest,
        "split": target.data.split,
        "count": score.count,
        "loss": score.loss,
        "accuracy": score.accuracy,
        "top5_accuracy": score.top5_accuracy,
    }
    try:
        Path(file).write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--json {file}: cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    cli.run(main)
