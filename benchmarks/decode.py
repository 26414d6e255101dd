"""Speed from stored bytes to a crop on one core: `python -m benchmarks.decode [PHOTOS] [--equality] [--json FILE]`.

Tables show images per CPU-second (`time.process_time`, all threads): the median of rounds in which the candidates take
turns. The tables are decoding (whole, at half the size, a region), resizing a random region, and the whole way for
each stored form. Every candidate that resizes is compared with the exact path, pixel by pixel, in levels of 255.

`--equality` only compares our fast path with the exact one, over all photographs, both filters and every size. It
fails if a difference exceeds its bound.

PHOTOS is a folder of JPEG files; without it, `benchmarks.photographs` makes them.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.decoders import DECODERS, RESIZERS, Box, Pixels
from benchmarks.photographs import write_photographs
from pipelines.config.crop import CropConfig
from pipelines.data.images.crop_boxes import random_box
from pipelines.data.images.crops import IMAGE_FILE, eval_view, train_view
from pipelines.data.images.pillow import center, decode_rgb, open_rgb, resize_shorter
from pipelines.data.images.stored import Stored
from pipelines.data.order.rng import Purpose, generator

SIZES = (224, 176, 160, 128)
BOUND = {"bilinear": (0.3, 2), "bicubic": (0.3, 16)}
"""Bounds by filter, in levels of 255: (mean difference over all images of a size, largest difference of a pixel)."""
FORMS = {
    "original": IMAGE_FILE,
    "jpeg, shorter side 256, quality 90": Stored(form="jpeg", size=256, quality=90, channels=3),
    "raw, 256x256": Stored(form="raw", size=256, quality=0, channels=3),
}
Candidates = Mapping[str, Callable[[int], Any]]
"""Functions by name; each gets the index of a file."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure decoding, resizing and both, in images per CPU-second.")
    parser.add_argument("photos", nargs="?", type=Path, help="folder of .jpg files (default: temporary ones are made)")
    parser.add_argument("--count", type=int, help="number of files (default: 200; all with --equality)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--equality", action="store_true", help="only compare the fast path with the exact one")
    parser.add_argument("--json", metavar="FILE", help="also write the tables to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resnet-ray-") as folder:
        if arguments.photos is None:
            write_photographs(Path(folder), 1000)
        paths = sorted((arguments.photos or Path(folder)).rglob("*.jpg"))
        count = arguments.count or (len(paths) if arguments.equality else 200)
        files = [path.read_bytes() for path in paths[:: max(1, len(paths) // count)][:count]]
    console = Console(width=150)
    console.print(f"{len(files):,} files of {np.mean([len(file) for file in files]) / 1000:.1f} kB")
    tables = equality(files) if arguments.equality else speed(files, arguments.rounds)
    for title, rows in tables.items():
        show(console, title, rows)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(tables, indent=1) + "\n")
    broken = [row for rows in tables.values() for row in rows if row.get("bound") == "broken"]
    sys.exit(1 if broken else 0)


Tables = dict[str, list[dict[str, Any]]]


def speed(files: Sequence[bytes], rounds: int) -> Tables:
    """Return all tables of rates."""
    sizes = [Image.open(io.BytesIO(file)).size for file in files]
    regions = [random_box(*size, CropConfig(), generator(0, Purpose.CROP, index)) for index, size in enumerate(sizes)]
    tables: Tables = {"Decoding": decoding(files, regions, rounds)}
    pixels = [np.array(decode_rgb(file)) for file in files]
    for size in SIZES:
        tables[f"Resizing a random region to {size}"] = resizing(pixels, regions, size, rounds)
    for size in SIZES:
        tables[f"Stored bytes to a random crop of {size}"] = whole_way(files, size, rounds)
    return tables


def decoding(files: Sequence[bytes], regions: Sequence[Box], rounds: int) -> list[dict[str, Any]]:
    candidates, missing = {}, []
    for library, load in DECODERS.items():
        try:
            ways = load()
            for way, decode in ways.items():
                decode(files[0], regions[0])
                candidates[f"{library}: {way}"] = lambda index, decode=decode: decode(files[index], regions[index])
        except Exception as error:  # each library fails with its own exceptions
            missing.append({"candidate": library, "skipped": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
    return rates(candidates, len(files), rounds) + missing


def resizing(pixels: Sequence[Pixels], regions: Sequence[Box], size: int, rounds: int) -> list[dict[str, Any]]:
    candidates, missing = {}, []
    for library, load in RESIZERS.items():
        try:
            for way, resize in load().items():
                candidates[f"{library} {way}".strip()] = lambda index, resize=resize: resize(
                    pixels[index], regions[index], size
                )
        except Exception as error:
            missing.append({"candidate": library, "skipped": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
    rows = rates(candidates, len(pixels), rounds)
    exact = [candidates["Pillow"](index) for index in range(len(pixels))]
    for row in rows:
        make = candidates[row["candidate"]]
        row |= difference([make(index) for index in range(len(pixels))], exact)
    return rows + missing


def whole_way(files: Sequence[bytes], size: int, rounds: int) -> list[dict[str, Any]]:
    rows = []
    fast = CropConfig(image_size=size)
    exact = dataclasses.replace(fast, decoder="exact")
    for name, stored in FORMS.items():
        records = [store(file, stored) for file in files]
        candidates = {f"{name}: {crop.decoder}": whole(records, stored, crop) for crop in (fast, exact)}
        if stored.form != "raw":
            candidates[f"{name}: fast, at half the size where it is enough"] = scaled(records, fast)
        measured = rates(candidates, len(files), rounds)
        reference = [candidates[f"{name}: exact"](index) for index in range(len(files))]
        for row in measured:
            row["kB"] = round(float(np.mean([len(record) for record in records])) / 1000, 1)
            row |= difference([candidates[row["candidate"]](index) for index in range(len(files))], reference)
        rows += measured
    return rows


def store(file: bytes, stored: Stored) -> bytes:
    """Return a file's bytes as prepare stores them."""
    if stored.form == "original":
        return file
    resized = resize_shorter(open_rgb(file), stored.size)
    if stored.form == "raw":
        return center(resized, stored.size).tobytes()
    buffer = io.BytesIO()
    resized.save(buffer, "JPEG", quality=stored.quality)
    return buffer.getvalue()


def whole(records: Sequence[bytes], stored: Stored, crop: CropConfig) -> Callable[[int], Pixels]:
    """Return the function of a data task: from a stored record to a training crop."""
    return lambda index: train_view(records[index], stored, crop, generator(0, Purpose.CROP, 0, index))


def scaled(records: Sequence[bytes], crop: CropConfig) -> Callable[[int], Pixels]:
    """Return a function that decodes at half the size if the region's sides are twice the crop's.

    Our fast path does not do this.
    """
    import simplejpeg

    from pipelines.data.images.resize import resize

    side = crop.image_size

    def view(index: int) -> Pixels:
        rng = generator(0, Purpose.CROP, 0, index)
        height, width, _, _ = simplejpeg.decode_jpeg_header(records[index])
        left, top, right, bottom = random_box(width, height, crop, rng)
        if min(right - left, bottom - top) < 2 * side:
            return train_view(records[index], IMAGE_FILE, crop, generator(0, Purpose.CROP, 0, index))
        pixels = simplejpeg.decode_jpeg(records[index], min_height=height // 2, min_width=width // 2)
        region = pixels[top // 2 : (bottom + 1) // 2, left // 2 : (right + 1) // 2]
        box = (left % 2 / 2, top % 2 / 2, left % 2 / 2 + (right - left) / 2, top % 2 / 2 + (bottom - top) / 2)
        return resize(region, box, (side, side), crop.interpolation)

    return view


def rates(candidates: Candidates, count: int, rounds: int) -> list[dict[str, Any]]:
    """Return the images per CPU-second of each candidate: median, slowest and fastest round."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, make in candidates.items():
            began = time.process_time()
            for index in range(count):
                make(index)
            taken[name].append(count / (time.process_time() - began))
    return [
        {
            "candidate": name,
            "images/CPU-s": round(median(each)),
            "slowest": round(min(each)),
            "fastest": round(max(each)),
        }
        for name, each in taken.items()
    ]


def difference(views: Sequence[Pixels], exact: Sequence[Pixels]) -> dict[str, float]:
    """Return differences in levels of 255: overall mean, highest mean of an image, highest of a pixel."""
    each = [np.abs(crop.astype(np.int16) - other) for crop, other in zip(views, exact, strict=True)]
    means = [float(one.mean()) for one in each]
    return {
        "mean": round(float(np.mean(means)), 3),
        "worst image": round(max(means), 3),
        "largest": int(max(one.max() for one in each)),
    }


def equality(files: Sequence[bytes]) -> Tables:
    """Compare the fast path with the exact one, in training and evaluation, for every size and both filters."""
    rows = []
    for interpolation, (mean, most) in BOUND.items():
        for size in SIZES:
            fast = CropConfig(image_size=size, eval_resize=size * 256 // 224, interpolation=interpolation)
            exact = dataclasses.replace(fast, decoder="exact")
            for name in ("training", "evaluation"):
                pairs = [[view(file, crop, name, index) for crop in (fast, exact)] for index, file in enumerate(files)]
                row = difference(*zip(*pairs, strict=True))
                bound = "held" if row["mean"] <= mean and row["largest"] <= most else "broken"
                rows.append({"filter": interpolation, "size": size, "crops": name, **row, "bound": bound})
    return {f"Fast and exact path on {len(files):,} photographs, levels of 255": rows}


def view(file: bytes, crop: CropConfig, name: str, index: int) -> Pixels:
    if name == "evaluation":
        return eval_view(file, IMAGE_FILE, crop)
    return train_view(file, IMAGE_FILE, crop, generator(0, Purpose.CROP, 0, index))


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names, title=title, title_justify="left", box=None, pad_edge=False, header_style="")
    for row in rows:
        table.add_row(
            *(f"{row[name]:,}" if isinstance(row.get(name), int) else str(row.get(name, "")) for name in names)
        )
    console.print(table)


if __name__ == "__main__":
    main()
