"""Score a model on a whole split, every image once, or compare two: `python pipelines/evaluate.py TARGET [TARGET]`.

TARGET is a run's folder (its best checkpoint, or that of --step), models:/NAME@champion or models:/NAME/VERSION. The
second of two, or of a run's two --step, is compared with the first on the same images; with --ensemble any number is
scored as one, the mean of their probabilities.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.interruption import listen

    listen()

from rich.text import Text

import infra.cluster
from infra.errors import UserError
from pipelines import cli
from pipelines.comparison_report import ComparisonReport
from pipelines.evaluated import evaluate
from pipelines.evaluation_report import EvaluationReport
from pipelines.inference import choose
from pipelines.output_files import check_file, check_folder, write_file
from pipelines.recipe import parse_overrides
from pipelines.scoring import ViewName, Views
from pipelines.targets import Request, open_targets

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        views=Views(name=arguments.views, scales=_scales(arguments.scales)),
        size=arguments.size,
        crop=parse_overrides(arguments.settings),
    )
    _check_outputs(arguments)
    targets = open_targets(request, console.print)
    infra.cluster.connect(min_cpus=1)
    choice, reports = choose(cli.use_gpu(arguments)), []
    print(f"scoring on {choice.told}", file=sys.stderr)
    for target in targets:
        with console.status(Text(f"{target.description} on the split {target.data.split}")):
            evaluated = evaluate(choice, target.model, target.data)
            reports.append(EvaluationReport(target=target, evaluated=evaluated))
    report = reports[0] if len(reports) == 1 else ComparisonReport(old=reports[0], new=reports[1])
    report.show(console)
    if arguments.json:
        write_file("--json", arguments.json, (json.dumps(report.as_json(), indent=1) + "\n").encode())
    if arguments.predictions:
        write_file("--predictions", arguments.predictions, report.predictions)
    if arguments.plots:
        _write_plots(arguments.plots, report.figures())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Score a model on a whole split, exactly, or compare two.")
    told = "run's folder, models:/NAME@champion or models:/NAME/VERSION; two are compared"
    parser.add_argument("targets", nargs="+", metavar="TARGET", help=told)
    told = "of a run: the checkpoint of this step instead of the best one; two are compared"
    parser.add_argument("--step", type=int, action="append", default=[], help=told)
    parser.add_argument("--ensemble", action="store_true", help="score all targets as one: their mean probabilities")
    parser.add_argument("--data", metavar="URI", help="data set (default: the one it was trained on)")
    parser.add_argument("--split", help="split (default: the test split)")
    told = "what of each image is shown to the model, whose probabilities are averaged (default: centre)"
    parser.add_argument("--views", choices=get_args(ViewName), default="centre", help=told)
    told = "side of the crop in pixels (default: as in training); the image before the crop grows with it"
    parser.add_argument("--size", type=int, metavar="N", help=told)
    told = "multi_scale: shorter sides of the image in pixels (default: the paper's, 224,256,384,480,640 at size 224)"
    parser.add_argument("--scales", default="", metavar="N,N,…", help=told)
    parser.add_argument("--home", default="runs", help="folder of MLflow's database without MLFLOW_TRACKING_URI")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    parser.add_argument("--predictions", metavar="FILE", help="write the answer to every image there, as Parquet")
    parser.add_argument("--plots", metavar="DIR", help="draw confusion, reliability and pictures there, as PNGs")
    cli.add_use_gpu(parser)
    cli.add_set(parser)
    return parser


def _scales(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(scale) for scale in text.split(",")) if text else ()
    except ValueError:
        raise UserError(f"--scales takes numbers of pixels such as 224,256,384, got {text!r}") from None


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Fail before minutes of scoring, not after them."""
    for option in ("json", "predictions"):
        if file := getattr(arguments, option):
            check_file(f"--{option}", file)
    if arguments.plots:
        check_folder("--plots", arguments.plots)


def _write_plots(folder: str, figures: Mapping[str, Figure]) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        image = io.BytesIO()
        figure.savefig(image, format="png")
        write_file("--plots", f"{folder}/{name}.png", image.getvalue())


if __name__ == "__main__":
    cli.run(main)
