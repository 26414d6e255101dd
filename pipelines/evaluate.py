"""Score a model on a whole split, every image once: `python pipelines/evaluate.py TARGET… [--views NAME] [--data URI]`.

TARGET is a run's folder (its best checkpoint, or that of --step), models:/NAME@champion or models:/NAME/VERSION.
Several, or several --step, are scored as one: the mean of their probabilities.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import get_args

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console
from rich.table import Table

import infra.cluster
from infra.errors import UserError
from pipelines import cli
from pipelines.recipe import parse_overrides
from pipelines.scoring import EvalData, SplitScore, ViewName, Views, score_model
from pipelines.targets import Request, Target, open_target

_SHOWN_CLASSES = 20  # of more, those with the lowest accuracy; --json has all


def main() -> None:
    arguments = _parser().parse_args()
    console = Console(soft_wrap=True, highlight=False, markup=False)
    request = Request(
        targets=tuple(arguments.targets),
        steps=tuple(arguments.step),
        data=arguments.data,
        split=arguments.split,
        home=arguments.home,
        views=Views(name=arguments.views, scales=_scales(arguments.scales)),
        size=arguments.size,
        crop=parse_overrides(arguments.settings),
    )
    target = open_target(request, console.print)
    infra.cluster.connect(min_cpus=1)
    with console.status(f"scoring the split {target.data.split}"):
        score = score_model(target.predict, target.data)
    console.print(_summary(target, score))
    console.print()
    console.print(_class_table(target, score))
    if arguments.json:
        _write_json(arguments.json, target, score)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Score a run or a registered model on a whole split, exactly.")
    told = "run's folder, models:/NAME@champion or models:/NAME/VERSION; several = an ensemble"
    parser.add_argument("targets", nargs="+", metavar="TARGET", help=told)
    told = "of a run: the checkpoint of this step instead of the best one; several = an ensemble"
    parser.add_argument("--step", type=int, action="append", default=[], help=told)
    parser.add_argument("--data", metavar="URI", help="data set (default: the one it was trained on)")
    parser.add_argument("--split", help="split (default: the one it was evaluated on in training)")
    told = "what of each image is shown to the model, whose probabilities are averaged (default: centre)"
    parser.add_argument("--views", choices=get_args(ViewName), default="centre", help=told)
    told = "side of the crop in pixels (default: as in training); the image before the crop grows with it"
    parser.add_argument("--size", type=int, metavar="N", help=told)
    told = "multi_scale: shorter sides of the image in pixels (default: the paper's, 224,256,384,480,640 at size 224)"
    parser.add_argument("--scales", default="", metavar="N,N,…", help=told)
    parser.add_argument("--home", default="runs", help="folder of MLflow's database without MLFLOW_TRACKING_URI")
    parser.add_argument("--json", metavar="FILE", help="write the scores there as well")
    cli.add_set(parser)
    return parser


def _scales(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(scale) for scale in text.split(",")) if text else ()
    except ValueError:
        raise UserError(f"--scales takes numbers of pixels such as 224,256,384, got {text!r}") from None


def _summary(target: Target, score: SplitScore) -> str:
    """One line each, however long: a table would break them at the width of the terminal."""
    rows = {
        "model": target.description,
        "data set": f"{target.data.manifest.name}, split {target.data.split}",
        "images": f"{score.count:,}",
        "views": _described(target.data),
        "pixels": f"{target.data.crop.interpolation}, {target.data.crop.decoder}",
        "loss": f"{score.loss:.4f}",
        "top-1": f"{score.accuracy:.2%}",
        "top-5": f"{score.top5_accuracy:.2%}",
        "calibration": f"{score.calibration_error:.2%} expected error",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _described(data: EvalData) -> str:
    size, resize = data.crop.image_size, data.crop.eval_resize
    crop = f"{size}x{size} of a shorter side of {resize}"
    scales = ", ".join(map(str, data.scales))
    whole = f"whole images with a shorter side of {scales}, at every position of a {size}x{size} crop"
    return {
        "centre": f"centre crop, {crop}",
        "flip": f"centre crop and its mirror image, {crop}",
        "ten_crop": f"10-crop, {crop}",
        "multi_scale": whole,
        "multi_scale_flip": f"{whole}, and their mirror images",
    }[data.views.name]


def _class_table(target: Target, score: SplitScore) -> Table:
    rows = list(zip(target.class_names, score.class_counts, score.class_accuracy, strict=True))
    title = "class"
    if len(rows) > _SHOWN_CLASSES:
        title = f"lowest {_SHOWN_CLASSES} of {len(rows):,} classes"
        rows = sorted((row for row in rows if row[1]), key=lambda row: row[2] or 0.0)[:_SHOWN_CLASSES]
    table = Table(title, "images", "top-1", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, count, accuracy in rows:
        table.add_row(name, f"{count:,}", "-" if accuracy is None else f"{accuracy:.2%}")
    return table


def _write_json(file: str, target: Target, score: SplitScore) -> None:
    content = {
        "target": target.description,
        "data_digest": score.data_digest,
        "split": target.data.split,
        "views": target.data.views.name,
        **target.data.crop.shown,
        "scales": target.data.scales,
        "count": score.count,
        "loss": score.loss,
        "accuracy": score.accuracy,
        "top5_accuracy": score.top5_accuracy,
        "calibration_error": score.calibration_error,
        "class_counts": dict(zip(target.class_names, score.class_counts, strict=True)),
        "class_accuracy": dict(zip(target.class_names, score.class_accuracy, strict=True)),
    }
    try:
        Path(file).write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--json {file}: cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    cli.run(main)
