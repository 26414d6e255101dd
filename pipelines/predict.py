"""Classify pictures: `python pipelines/predict.py IMAGE… [--model models:/NAME@champion] [--top 5]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import numpy.typing as npt
from rich.console import Console

from infra.errors import UserError
from infra.mlflow_client import Tracking, connect, resolve_tracking, told_in_one_line
from infra.registry import CHAMPION, load
from pipelines import cli
from pipelines.data.decode import CropConfig, DecodeError
from pipelines.data.views import IMAGE_FILE, eval_view

_BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the most probable classes of each picture.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    parser.add_argument("--model", metavar="URI", help=f"models:/NAME@{CHAMPION} (default: the only champion there is)")
    parser.add_argument("--top", type=int, default=5, help="classes to print (default: 5)")
    parser.add_argument("--home", default="runs", help="folder of MLflow's database without MLFLOW_TRACKING_URI")
    arguments = parser.parse_args()
    if arguments.top < 1:
        raise UserError(f"--top must be at least 1, got {arguments.top}")
    missing = next((file for file in arguments.images if not Path(file).is_file()), None)
    if missing is not None:
        raise UserError(f"there is no image file {missing}")
    tracking = resolve_tracking(arguments.home)
    model = load(tracking, arguments.model or _only_champion(tracking))
    crop = CropConfig.of_shown(model.metadata)
    images = np.stack([_read(file, crop) for file in arguments.images])
    batches = [model.predict(images[begin : begin + _BATCH]) for begin in range(0, len(images), _BATCH)]
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for file, probabilities in zip(arguments.images, np.concatenate(batches), strict=True):
        console.print("\n".join([file, *_top(probabilities, model.metadata["class_names"], arguments.top)]))


def _only_champion(tracking: Tracking) -> str:
    """The champion to use where none was named."""
    client = connect(tracking)
    with told_in_one_line(tracking):
        models = client.search_registered_models()
    champions = sorted(f"models:/{model.name}@{CHAMPION}" for model in models if CHAMPION in model.aliases)
    if not champions:
        raise UserError(f"MLflow at {tracking.description} has no champion: train one, or name a version with --model")
    if len(champions) > 1:
        raise UserError(f"there are several champions, name one with --model: {', '.join(champions)}")
    return champions[0]


def _read(file: str, crop: CropConfig) -> npt.NDArray[np.uint8]:
    try:
        return eval_view(Path(file).read_bytes(), IMAGE_FILE, crop)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise UserError(f"{file} does not decode: {error}") from error


def _top(probabilities: npt.NDArray[np.float32], class_names: Sequence[str], count: int) -> list[str]:
    """One line for each of the most probable classes."""
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [f"{probabilities[place]:8.2%}  {class_names[place]}" for place in order.tolist()]


if __name__ == "__main__":
    cli.run(main)
