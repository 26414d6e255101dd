"""Ours without Ray: what a data task runs, then batches as a worker makes them, flipped by torch as on a device.

Variants are the stored form: original, jpeg-500, jpeg-256, raw-256 (see ffcv.py). Two workers are two processes that
begin to be measured together.
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
from pipelines.data.decode import CropConfig
from pipelines.data.ingest import Stream
from pipelines.data.ledger import Ledger
from pipelines.data.manifest import load_manifest
from pipelines.data.plan import plan_tasks
from pipelines.data.task import load_item
from resnet_core.augment import random_flip

FORMS = {
    "original": ["prepare.form=original"],
    "jpeg-500": ["prepare.form=jpeg", "prepare.size=500"],  # no photograph's shorter side is longer: none is resized
    "jpeg-256": ["prepare.form=jpeg", "prepare.size=256"],
    "raw-256": ["prepare.form=raw", "prepare.size=256"],
}
_ENDLESS = 500  # epochs
_ITEMS_PER_TASK = 32  # as in a long run


def photograph_stream(data_uri: str, run_uri: str, *, step_rows: int, seed: int = 0, size: int = CROP) -> Stream:
    """Training on the photographs for longer than anybody measures, by the recipes' defaults."""
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
    """The data set of a stored form at DEST, made if it is not there."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(root / "pipelines/prepare.py"), str(photographs.parent), dest]
    settings = [word for setting in FORMS[form] for word in ("--set", setting)]
    subprocess.run([*command, *settings], check=True, stdout=subprocess.DEVNULL)
    return dest


def blocks(stream: Stream) -> Iterator[np.ndarray]:
    """Images of a data task's work, one task after the other, as it hands them on."""
    store, manifest, reader = open_store(stream.data_uri), stream.manifest, stream.reader()
    for items in plan_tasks(stream.plan, Ledger(manifest.splits["train"]), _ITEMS_PER_TASK):
        for item, ahead in reader.ahead(items):
            config = stream.config(stream.block_rows(item.image_size))
            for block in load_item(store, manifest, item, config, None, ahead):
                yield block["image"]


def batches(job: Job, seed: int = 0) -> Iterator[int]:
    """A data task's work, and a worker's."""
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
    """One of several processes."""
    results.put(measure(batches(job, rank), epoch=len(job.files()), seconds=job.seconds, before=barrier.wait))


def several(job: Job) -> Measured:
    """That many processes at once."""
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
