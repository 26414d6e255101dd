"""From stored bytes to a crop on one core: `python -m benchmarks.decode [PHOTOS] [--equality] [--json FILE]`.

Tables of images per CPU-second (`time.process_time`, all threads; median of the rounds, in which the candidates take
turns): decoding wholly, at half the size and in part; resizing a random region; and the whole way for each stored form.
Whatever resizes is compared with the exact path, pixel by pixel, in levels of 255. `--equality` does only that, for our
fast path, over all photographs, both filters and every size, and fails where the bound is broken.

PHOTOS is a folder of JPEG files; without it they are made by `benchmarks.photographs`.
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
from pipelines.data.boxes import random_box
from pipelines.data.decode import CropConfig, center, decode_rgb, open_rgb, resize_shorter
from pipelines.data.manifest import Stored
from pipelines.data.rng import Purpose, generator
from pipelines.data.views import IMAGE_FILE, eval_view, train_view

SIZES = (224, 176, 160, 128)
BOUND = {"bilinear": (0.3, 2), "bicubic": (0.3, 16)}
"""Mean over all images of a size, and most of any pixel, in levels of 255."""
FORMS = {
    "original": IMAGE_FILE,
    "jpeg, shorter side 256, quality 90": Stored(form="jpeg", size=256, quality=90, channels=3),
    "raw, 256x256": Stored(form="raw", size=256, quality=0, channels=3),
}
Candidates = Mapping[str, Callable[[int], Any]]
"""What each does with the file of an index."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure decoding, resizing and both, in images per CPU-second.")
    parser.add_argument("photos", nargs="?", type=Path, help="folder of .jpg files (default: made for the occasion)")
    parser.add_argument("--count", type=int, help="files to take (default: 200; all with --equality)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--equality", action="store_true", help="only hold the fast path to the exact one")
    parser.add_argument("--json", metavar="FILE", help="write the tables there, too")
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
    """All tables of rates."""
    sizes = [Image.open(io.BytesIO(file)).size for file in files]
    regions = [random_box(*size, CropConfig(), generator(0, Purpose.CROP, index)) for index, size in enumerate(sizes)]
    tables: Tables = {"Decoding": decoding(files, regions, rounds)}
    pixels = [np.array(decode_rgb(file)) for file in files]
    for size in SIZES:
        tables[f"Resizing a random region to {size}"] = resizing(pixels, regions, size, rounds)
    for size in SIZES:
        tables[f"Stored bytes to a random view of {size}"] = whole_way(files, size, rounds)
    return tables


def decoding(files: Sequence[bytes], regions: Sequence[Box], rounds: int) -> list[dict[str, Any]]:
    candidates, missing = {}, []
    for library, load in DECODERS.items():
        try:
            ways = load()
            for way, decode in ways.items():
                decode(files[0], regions[0])
                candidates[f"{library}: {way}"] = lambda index, decode=decode: decode(files[index], regions[index])
        except Exception as error:  # a candidate may fail as it likes
            missing.append({"candidate": library, "left out": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
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
            missing.append({"candidate": library, "left out": f"{type(error).__name__}: {str(error).splitlines()[0]}"})
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
    """A file as prepare stores it."""
    if stored.form == "original":
        return file
    resized = resize_shorter(open_rgb(file), stored.size)
    if stored.form == "raw":
        return center(resized, stored.size).tobytes()
    buffer = io.BytesIO()
    resized.save(buffer, "JPEG", quality=stored.quality)
    return buffer.getvalue()


def whole(records: Sequence[bytes], stored: Stored, crop: CropConfig) -> Callable[[int], Pixels]:
    """What a data task does."""
    return lambda index: train_view(records[index], stored, crop, generator(0, Purpose.CROP, 0, index))


def scaled(records: Sequence[bytes], crop: CropConfig) -> Callable[[int], Pixels]:
    """Decoded at half the size where the region has twice the crop's pixels: what the fast path does not do."""
    import simplejpeg

    from pipelines.data.resize import resize

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
    """Images per CPU-second of each: median, slowest and fastest of the rounds."""
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
    """In levels of 255: mean over all, the mean of the image that differs most, and the most of any pixel."""
    each = [np.abs(view.astype(np.int16) - other) for view, other in zip(views, exact, strict=True)]
    means = [float(one.mean()) for one in each]
    return {
        "mean": round(float(np.mean(means)), 3),
        "worst image": round(max(means), 3),
        "largest": int(max(one.max() for one in each)),
    }


def equality(files: Sequence[bytes]) -> Tables:
    """The fast path against the exact one, training and evaluation, every size, both filters."""
    rows = []
    for interpolation, (mean, most) in BOUND.items():
        for size in SIZES:
            fast = CropConfig(image_size=size, eval_resize=size * 256 // 224, interpolation=interpolation)
            exact = dataclasses.replace(fast, decoder="exact")
            for name in ("training", "evaluation"):
                pairs = [[view(file, crop, name, index) for crop in (fast, exact)] for index, file in enumerate(files)]
                row = difference(*zip(*pairs, strict=True))
                bound = "held" if row["mean"] <= mean and row["largest"] <= most else "broken"
                rows.append({"filter": interpolation, "size": size, "views": name, **row, "bound": bound})
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
