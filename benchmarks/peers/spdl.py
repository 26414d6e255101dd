"""SPDL, which uses threads. Variants: ffmpeg (its decoder; crop, scale, flip as one filter), tensor (torchvision)."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path

import spdl.io
import torch
from spdl.pipeline import PipelineBuilder
from torch import Tensor
from torchvision.io import read_file

from benchmarks.peers.measure import CROP, RATIO, SCALE, Job, run
from benchmarks.peers.pixels import view


def batches(job: Job) -> Iterator[int]:
    torch.set_num_threads(1)
    load, join = (_by_ffmpeg, _to_tensor) if job.variant == "ffmpeg" else (_by_torchvision, torch.stack)
    builder = PipelineBuilder().add_source(_shuffled([file for file, _ in job.files()]))
    pipeline = builder.pipe(load, concurrency=job.workers).aggregate(job.batch).pipe(join).add_sink(2)
    with (built := pipeline.build(num_threads=job.workers)).auto_stop():
        for images in built.get_iterator(timeout=60):
            yield len(images)


def _shuffled(files: list[Path]) -> Iterator[Path]:
    for _ in itertools.count():
        yield from random.sample(files, len(files))


def _by_torchvision(file: Path) -> Tensor:
    return view(read_file(str(file)))


def _by_ffmpeg(file: Path) -> spdl.io.ImageFrames:
    packets = spdl.io.demux_image(str(file))
    left, top, width, height = _box(packets.codec.width, packets.codec.height)
    flip = "hflip," if random.random() < 0.5 else ""
    scale = f"scale={CROP}:{CROP}:flags=bilinear"
    return spdl.io.decode_packets(
        packets, filter_desc=f"crop={width}:{height}:{left}:{top}:exact=1,{scale},{flip}format=rgb24"
    )


def _to_tensor(frames: list[spdl.io.ImageFrames]) -> Tensor:
    return spdl.io.to_torch(spdl.io.convert_frames(frames))


def _box(width: int, height: int) -> tuple[int, int, int, int]:
    """Draw a random region as in torchvision: left, top, width and height."""
    for _ in range(10):
        area, ratio = width * height * random.uniform(*SCALE), math.exp(random.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


if __name__ == "__main__":
    run(batches)
