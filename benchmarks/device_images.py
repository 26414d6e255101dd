"""Decoding and cropping in data tasks or on the workers' device: `python -m benchmarks.device_images FOLDER`.

FOLDER has class folders of images (`benchmarks/photographs.py` makes them). For each stored form, on one core and the
device, this prints:

- images/s of one data task that decodes (host), and of one that only sends stored images (device);
- bytes that the second sends per image;
- images/s that the device crops from them;
- the difference between the pixels of both ways.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import infra.cluster
from infra.storage import open_store
from pipelines.config.crop import CropConfig
from pipelines.config.prepare import PrepareConfig
from pipelines.data.images.stored import Form
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import Plan, plan_items
from pipelines.data.prepare.prepare import prepare
from pipelines.data.prepare.sources import open_source
from pipelines.data.tasks.crops import Block, TaskConfig, load_item
from pipelines.data.tasks.encoded import load_undecoded
from pipelines.training.device_decode import DeviceImages

FORMS: tuple[tuple[Form, int], ...] = (("original", 0), ("jpeg", 256), ("raw", 256))
SIZE = 224


def rate(blocks: Callable[[], Iterator[Block]], rounds: int) -> tuple[float, list[Block]]:
    """Return the median images/s over the rounds, and the blocks of the last round."""
    rates, found = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        found = list(blocks())
        rates.append(sum(len(block["id"]) for block in found) / (time.perf_counter() - began))
    return statistics.median(rates), found


def measure(source: str, form: Form, size: int, device: torch.device, rounds: int) -> str:
    """Measure one stored form and return its line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        manifest = prepare(open_source(source, holdout=0.0), store, PrepareConfig(form=form, size=size))
        plan = Plan(
            manifest=manifest, split="train", seed=0, total_samples=manifest.splits["train"], sizes=((0, SIZE),)
        )
        items = list(plan_items(plan, Ledger(manifest.splits["train"])))
        config = TaskConfig(crop=CropConfig(image_size=SIZE), train=True, seed=0, rows_per_block=128)
        loads = (load_item, load_undecoded)
        (host, exact), (task, sent) = (
            rate(lambda: (b for item in items for b in load(store, manifest, item, config)), rounds)  # noqa: B023
            for load in loads
        )
    maker = DeviceImages(device=device)

    def cropped() -> Iterator[Block]:
        for block in sent:
            yield {"id": block["id"], "image": maker.crops([block]).cpu().numpy()}

    on_device, made = rate(cropped, rounds)
    pairs = zip(exact, made, strict=True)
    apart = np.concatenate([_levels(one["image"], other["image"]).ravel() for one, other in pairs])
    count = sum(len(block["id"]) for block in sent)
    kilobytes = sum(_bytes(block) for block in sent) / count / 1000
    return (
        f"{form + (f' {size}' if size else ''):12} {host:10,.0f} {task:12,.0f} {kilobytes:10,.0f} {on_device:12,.0f}"
        f" {apart.mean():12.3f} {apart.max():8}"
    )


def _levels(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.int16]:
    """Return the absolute differences of the pixels, in levels of 255."""
    return np.abs(one.astype(np.int16) - other.astype(np.int16))


def _bytes(block: Block) -> int:
    image = block["image"]
    return sum(map(len, image)) if image.dtype == object else image.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare decoding and cropping in data tasks and on the device.")
    parser.add_argument("source", metavar="FOLDER")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    infra.cluster.connect(min_cpus=1)
    print(f"crops of {SIZE} on {arguments.device}; a host crop is {3 * SIZE**2 / 1000:,.0f} kB", flush=True)
    print("stored as    host task  device task  kB an image  device crops  mean diff.  largest", flush=True)
    for form, size in FORMS:
        line = measure(arguments.source, form, size, torch.device(arguments.device), arguments.rounds)
        print(line, flush=True)


if __name__ == "__main__":
    main()
