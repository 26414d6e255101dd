"""Classify images: `python pipelines/predict.py IMAGE… [--model models:/NAME@champion] [--out FOLDER]`.

IMAGE is a file, a folder, or s3://bucket/prefix. A single IMAGE may also be a data set that prepare.py wrote, or
Parquet with an image column. The command prints the most probable classes. With --out it computes them through Ray and
writes them as Parquet; after a kill, the same command resumes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from infra.interruption import listen

    listen()

from infra.errors import UserError
from infra.registry.versions import CHAMPION
from pipelines import cli
from pipelines.config import paths
from pipelines.inference.classify import PredictRequest, predict

_ACTORS = os.cpu_count() or 1


def main() -> int:
    arguments = _parser().parse_args()
    for name in ("top", "actors", "file_rows"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    return predict(
        PredictRequest(
            images=arguments.images,
            split=arguments.split,
            model=arguments.model,
            home=arguments.home,
            out=arguments.out or "",
            top=arguments.top,
            all_probabilities=arguments.all,
            file_rows=arguments.file_rows,
            actors=arguments.actors,
            use_gpu=cli.use_gpu(arguments),
        )
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Print the most probable classes of images, or write them as Parquet.")
    text = "image file, folder or s3://bucket/prefix of images; or one data set, or one place with Parquet"
    parser.add_argument("images", nargs="+", metavar="IMAGE", type=paths.origin, help=text)
    text = f"models:/NAME@{CHAMPION} or models:/NAME/VERSION (default: the champion, if there is only one model)"
    parser.add_argument("--model", metavar="URI", help=text)
    parser.add_argument("--top", type=int, default=5, help="classes to print or write (default: 5)")
    text = "write Parquet to this folder or s3://bucket/prefix"
    parser.add_argument("--out", metavar="URI", type=paths.destination, help=text)
    parser.add_argument("--all", action="store_true", help="write the probabilities of all classes as well")
    text = "approximate predictions per file; a killed command loses those of unfinished files (default: 8192)"
    parser.add_argument("--file-rows", type=int, default=8192, metavar="N", help=text)
    parser.add_argument("--split", help="split of a data set (default: all splits)")
    text = f"maximum number of copies of the model, each with one CPU or one GPU (default: {_ACTORS})"
    parser.add_argument("--actors", type=int, default=_ACTORS, metavar="N", help=text)
    cli.add_use_gpu(parser)
    cli.add_home(parser)
    return parser


if __name__ == "__main__":
    cli.run(main)
