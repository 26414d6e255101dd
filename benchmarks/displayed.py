"""What it costs to read image files as viewers show them: images/s of one core, as displayed and as stored.

    python -m benchmarks.displayed upright.jpg turned.jpg display_p3.jpg [--rounds 5]

Each image is decoded and cropped to 224 pixels as in training. The two ways take turns; CPU time counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import numpy as np

from pipelines.config.crop import CropConfig
from pipelines.data.images.crops import IMAGE_FILE, train_view
from pipelines.data.images.kinds import kinds_of
from pipelines.data.images.stored import Stored

_WAYS = {"stored": IMAGE_FILE, "displayed": dataclasses.replace(IMAGE_FILE, pixels="displayed")}
_CROPS = 150


def rate(file: bytes, stored: Stored) -> float:
    """Return images per second of CPU time."""
    began = time.process_time()
    for seed in range(_CROPS):
        train_view(file, stored, CropConfig(), np.random.default_rng(seed))
    return _CROPS / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how fast files are read as stored and as displayed.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("| file | kinds | stored, images/s | displayed, images/s |\n| --- | --- | --- | --- |")
    for path in arguments.files:
        file = path.read_bytes()
        rates: dict[str, list[float]] = {way: [] for way in _WAYS}
        for _ in range(arguments.rounds):
            for way, stored in _WAYS.items():
                rates[way].append(rate(file, stored))
        cells = (f"{statistics.median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f})" for each in rates.values())
        print(f"| {path.name} | {', '.join(kinds_of(file, path.name)) or 'plain'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
