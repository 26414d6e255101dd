"""Our loader without Ray: the function of a data task, then a worker's batches, flipped by torch as on a device.

Variants are stored forms: original, jpeg-500, jpeg-256, raw-256 (see ffcv.py). Two workers are two processes whose
measurements begin together.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.measure import CROP, Job, Measured, arguments, measure, write
from infra.storage import open_store
from pipelines.config.crop import CropConfig
from pipelines.data.order.ledger import Ledger
from pipelines.data.order.plan import plan_tasks
from pipelines.data.shards.manifest import load_manifest
from pipelines.data.tasks.crops import load_item
from pipelines.training.stream import Stream
from resnet_core.augment import random_flip

FORMS = {
    "original": ["prepare.form=original"],
    "jpeg-500": ["prepare.form=jpeg", "prepare.size=500"],  # no shorter side is longer: none is resized
    "jpeg-256": ["prepare.form=jpeg", "prepare.size=256"],
    "raw-256": ["prepare.form=raw", "prepare.size=256"],
}
_ENDLESS = 500  # epochs
_ITEMS_PER_TASK = 32  # as in a long run


def photograph_stream(data_uri: str, run_uri: str, *, step_rows: int, seed: int = 0, size: int = CROP) -> Stream:
    """Return a stream of the photographs with the recipes' defaults, longer than any measurement."""
    manifest = load_manifest(open_store(data_uri))
    return Stream(
        manifest=manifest,
        data_uri=data_uri,
        run_uri=run_uri,
        crop=CropConfig(image_size=size),
        sizes=((0, size),),
        split="train",
        seed=seed,
        total_samples=manifest.splits["train"] * _ENDLESS // step_rows * step_rows,
        step_rows=step_rows,
        task_mb=32,
        ordered=False,
    )


def prepared(photographs: Path, form: str, dest: str) -> str:
    """Prepare the data set of a stored form at `dest`, unless it exists, and return `dest`."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(root / "pipelines/prepare.py"), str(photographs.parent), dest]
    settings = [word for setting in FORMS[form] for word in ("--set", setting)]
    subprocess.run([*command, *settings], check=True, stdout=subprocess.DEVNULL)
    return dest


def blocks(stream: Stream) -> Iterator[np.ndarray]:
    """Yield blocks of images of one data task after the other, as a data task yields them."""
    store, manifest, reader = open_store(stream.data_uri), stream.manifest, stream.reader()
    for items in plan_tasks(stream.plan, Ledger(manifest.splits["train"]), _ITEMS_PER_TASK):
        for item, ahead in reader.ahead(items):
            config = stream.config(stream.block_rows(item.image_size))
            for block in load_item(store, manifest, item, config, None, ahead):
                yield block["image"]


def batches(job: Job, seed: int = 0) -> Iterator[int]:
    """Do the work of a data task and of a worker; yield the number of images of each batch."""
    torch.set_num_threads(1)
    stream = photograph_stream(str(job.scratch / "data"), "", step_rows=job.batch, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    held: list[np.ndarray] = []
    for block in blocks(stream):
        held.append(block)
        while sum(map(len, held)) >= job.batch:
            images = np.concatenate(held)
            held = [images[job.batch :]]
            yield len(random_flip(torch.from_numpy(images[: job.batch]), generator))


def one_of(job: Job, rank: int, barrier: Barrier, results: SimpleQueue[Measured]) -> None:
    """Measure in one of several processes; put the result."""
    results.put(measure(batches(job, rank), epoch=len(job.files()), seconds=job.seconds, before=barrier.wait))


def several(job: Job) -> Measured:
    """Measure in `job.workers` processes at once, and add up their results."""
    context = get_context("spawn")
    barrier, results = context.Barrier(job.workers), context.SimpleQueue()
    processes = [context.Process(target=one_of, args=(job, rank, barrier, results)) for rank in range(job.workers)]
    for process in processes:
        process.start()
    parts: list[Measured] = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return dataclasses.replace(
        parts[0],
        images=sum(part.images for part in parts),
        wall_s=max(part.wall_s for part in parts),
        cpu_s=sum(part.cpu_s for part in parts),
        longest_gap_s=max(part.longest_gap_s for part in parts),
    )


def main() -> None:
    job, out = arguments()
    prepared(job.photographs, job.variant, str(job.scratch / "data"))
    if job.workers > 1:
        write(several(job), out)
    else:
        write(measure(batches(job), epoch=len(job.files()), seconds=job.seconds), out)


if __name__ == "__main__":
    main()
