"""Where to decode and crop: data tasks, or the workers' device: `python -m benchmarks.device_images FOLDER`.

For each stored form of the pictures in FOLDER (class folders; `benchmarks/photographs.py` makes them), on one core and
the device: images/s that one data task makes where it decodes (host) and where it only sends on (device), what it sends
of an image, images/s that the device makes of that, and how far the pixels of the two ways are apart.
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
from pipelines.data.decode import CropConfig
from pipelines.data.ledger import Ledger
from pipelines.data.manifest import Form
from pipelines.data.plan import Plan, plan_items
from pipelines.data.prepare_config import PrepareConfig
from pipelines.data.sources import open_source
from pipelines.data.task import Block, TaskConfig, load_item
from pipelines.data.undecoded import load_undecoded
from pipelines.data.write import prepare
from pipelines.device_images import DeviceImages

FORMS: tuple[tuple[Form, int], ...] = (("original", 0), ("jpeg", 256), ("raw", 256))
SIZE = 224


def rate(blocks: Callable[[], Iterator[Block]], rounds: int) -> tuple[float, list[Block]]:
    """Median images/s of some rounds, and the blocks of the last one."""
    rates, found = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        found = list(blocks())
        rates.append(sum(len(block["id"]) for block in found) / (time.perf_counter() - began))
    return statistics.median(rates), found


def measure(source: str, form: Form, size: int, device: torch.device, rounds: int) -> str:
    """A line of the table."""
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
    """How far the pixels are apart."""
    return np.abs(one.astype(np.int16) - other.astype(np.int16))


def _bytes(block: Block) -> int:
    image = block["image"]
    return sum(map(len, image)) if image.dtype == object else image.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description="Decoding and cropping in data tasks against on the device.")
    parser.add_argument("source", metavar="FOLDER")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    infra.cluster.connect(min_cpus=1)
    print(f"crops of {SIZE} on {arguments.device}; a host crop is {3 * SIZE**2 / 1000:,.0f} kB", flush=True)
    print("stored as    host task  device task  kB an image  device crops  mean apart  largest", flush=True)
    for form, size in FORMS:
        line = measure(arguments.source, form, size, torch.device(arguments.device), arguments.rounds)
        print(line, flush=True)


if __name__ == "__main__":
    main()
