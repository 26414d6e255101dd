"""Score a model on a whole split, every image once, or compare two: `python pipelines/evaluate.py TARGET [TARGET]`.

TARGET is a run's folder (its best checkpoint, or the one of --step), models:/NAME@champion or models:/NAME/VERSION.
The second of two targets, or of two --step of a run, is compared with the first on the same images. With --ensemble,
any number of targets is scored as one model, by the mean of their probabilities.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.interruption import listen

    listen()

from pipelines import cli
from pipelines.config import paths
from pipelines.config.recipe import parse_overrides
from pipelines.evaluation.models import Request
from pipelines.evaluation.outputs import Outputs, report_on
from pipelines.evaluation.scoring import EvalCrops, ViewName


def main() -> None:
    arguments = _parser().parse_args()
    console = cli.console()
    request = Request(
        targets=tuple(arguments.targets),
        steps=tuple(arguments.step),
        ensemble=arguments.ensemble,
        data=arguments.data,
        split=arguments.split,
        home=arguments.home,
        views=EvalCrops.parsed(arguments.views, arguments.scales),
        size=arguments.size,
        crop=parse_overrides(arguments.settings),
    )
    outputs = Outputs(**{name: getattr(arguments, name) or "" for name in ("json", "predictions", "plots")})
    outputs.check()
    report = report_on(request, cli.use_gpu(arguments), console)
    report.show(console)
    outputs.write(report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Score a model on a whole split, exactly, or compare two.")
    text = "run's folder, models:/NAME@champion or models:/NAME/VERSION; two are compared"
    parser.add_argument("targets", nargs="+", metavar="TARGET", type=paths.origin, help=text)
    text = "checkpoint of this step instead of the run's best one; give --step twice to compare two"
    parser.add_argument("--step", type=int, action="append", default=[], help=text)
    parser.add_argument("--ensemble", action="store_true", help="score all targets as one: mean of their probabilities")
    text = "data set (default: the one that was trained on)"
    parser.add_argument("--data", metavar="URI", type=paths.origin, help=text)
    parser.add_argument("--split", help="split (default: the test split)")
    text = "test-time crops of each image; the model's probabilities for them are averaged (default: centre)"
    parser.add_argument("--views", choices=get_args(ViewName), default="centre", help=text)
    text = "side of the crop in pixels (default: as in training); the resized image changes in proportion"
    parser.add_argument("--size", type=int, metavar="N", help=text)
    text = "multi_scale: shorter sides of the image in pixels (default: the paper's, 224,256,384,480,640 at size 224)"
    parser.add_argument("--scales", default="", metavar="N,N,…", help=text)
    cli.add_home(parser)
    for option, place, text in (
        ("--json", "FILE", "also write the metrics to this file"),
        ("--predictions", "FILE", "write every image's prediction to this file, as Parquet"),
        ("--plots", "DIR", "write confusion, reliability and mistakes as PNGs to this folder"),
    ):
        parser.add_argument(option, metavar=place, type=paths.destination_on_disk, help=text)
    cli.add_use_gpu(parser)
    cli.add_set(parser)
    return parser


if __name__ == "__main__":
    cli.run(main)
