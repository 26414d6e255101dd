"""Overhead of the pipeline: its images/s against a plain PyTorch loop, in turns: `python benchmarks/overhead.py`.

Both train ResNet-20 on Fashion-MNIST with the recipe's batch, augmentation, optimizer and threads. Without the Debian
package dataset-fashion-mnist, they train on MNIST-5k.

The pipeline is `pipelines/train.py` as a user starts it: Ray, shards, stream, ledger, checkpoints, MLflow. Its rate is
the recorded one, which includes checkpoints but not evaluations. The plain loop has all images in memory as one uint8
tensor per process, and DistributedDataParallel over gloo if there are several processes. The first steps of both are
not counted.

The time from command to first step is measured in a separate short run, which `benchmarks/trace` traces.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import events
from infra.storage import open_store
from infra.tracking.metric_point import MetricPoint
from pipelines.checkpoint import RunFolder
from pipelines.config.recipe import Recipe, load_recipe
from pipelines.data.prepare.sources import open_source
from pipelines.data.prepare.sources.arrays import Arrays
from pipelines.training.build import build_state, decided
from resnet_core.augment import augment, step_generator
from resnet_core.compute import autocast
from resnet_core.schedule import LrSchedule

RAY_NICENESS = 15  # that of Ray's workers (RAY_worker_niceness); the plain loop's processes get the same
RECORD_EVERY = 10

# Stages until the end of the first step, in order: (what the time is spent on, the event that ends the stage).
STAGES = (
    ("Python and imports of the driver", "train:begin"),
    ("run folder, data set", "connect:begin"),
    ("Ray; MLflow's imports meanwhile", "connect:end"),
    ("rest of MLflow's start, imports of Ray Train", "launch:begin"),
    ("Ray Train's controller and workers, torch", "train_worker:begin"),
    ("model, while the stream starts", "build_state:end"),
    ("first block", "RankBatches.base:end"),
    ("first step", "train_step:end"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plain:
    """Settings of the plain loop."""

    recipe: Recipe
    source: str
    workers: int
    steps: int
    skip: int
    port: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """Images/s over all workers, one pass of each side."""

    pipeline: float
    plain: float
    data_wait_share: float  # fraction of the pipeline's training time, on the worker that waited most
    ratio: float


def plain_worker(rank: int, job: Plain, results: SimpleQueue[float]) -> None:
    """Run one process of the plain loop; rank 0 puts the rate."""
    os.nice(RAY_NICENESS)
    torch.set_num_threads(job.recipe.compute.threads_per_worker)
    if job.workers > 1:
        where = f"tcp://127.0.0.1:{job.port}"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=job.workers)
    device = torch.device("cpu")
    recipe = decided(job.recipe, device)
    assert recipe.compute.precision != "auto"
    arrays = open_source(job.source, holdout=0.0, seed=recipe.prepare.seed).splits["train"]
    assert isinstance(arrays, Arrays)
    state = build_state(recipe, device, job.workers, len(arrays))
    schedule = LrSchedule.build(recipe.schedule, recipe.optim, len(arrays))
    began = 0.0
    for step, (images, labels) in enumerate(batches(job, arrays, rank)):
        if step == job.skip:
            began = time.perf_counter()
        for group in state.optimizer.param_groups:
            group["lr"] = schedule(step)
        inputs = augment(images, recipe.augment, step_generator(recipe.run.seed, step, rank, device))
        with autocast(device, recipe.compute.precision):
            loss = F.cross_entropy(state.forward(inputs), labels)
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if step % RECORD_EVERY == 0:
            loss.item()
    seconds = time.perf_counter() - began
    if rank == 0:
        results.put((job.steps - job.skip) * recipe.optim.global_batch_size / seconds)
    if job.workers > 1:
        dist.destroy_process_group()


def batches(job: Plain, arrays: Arrays, rank: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this rank's randomly cropped images, uint8 B x S x S x 3, and labels; every epoch has a new order."""
    side, pad = job.recipe.data.image_size, job.recipe.data.pad
    images = F.pad(torch.tensor(arrays.images), (pad, pad, pad, pad))[..., None].expand(-1, -1, -1, 3).contiguous()
    labels = torch.tensor(arrays.labels, dtype=torch.int64)
    generator, size = torch.Generator().manual_seed(rank), job.recipe.optim.global_batch_size // job.workers
    window, slack = torch.arange(side), images.shape[1] - side + 1
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(job.steps):
        if len(order) < size:
            order = torch.randperm(len(images), generator=generator)
        chosen, order = order[:size], order[size:]
        top, left = torch.randint(slack, (2, size, 1), generator=generator)
        rows, columns = (top + window)[:, :, None], (left + window)[:, None, :]
        yield images[chosen[:, None, None], rows, columns], labels[chosen]


def run_plain(job: Plain) -> float:
    """Return the images/s of the plain loop at steady state."""
    context = torch.multiprocessing.get_context("spawn")
    results: SimpleQueue[float] = context.SimpleQueue()
    spawn(plain_worker, (job, results), nprocs=job.workers)
    return float(results.get())


def run_pipeline(
    recipe: str, settings: dict[str, object], *, trace: Path | None = None
) -> tuple[float, list[MetricPoint]]:
    """Train to the end; return the command's start (Unix seconds) and the run's records."""
    home = Path(str(settings["run.home"]))
    home.mkdir(parents=True)
    log = home / "output.txt"
    began = time.time()
    process = events.start(recipe, {**settings, "run.name": "run"}, log=log, trace=trace)
    if process.wait() != 0:
        raise SystemExit(f"the pipeline failed:\n{log.read_text()}")
    newest = RunFolder(open_store(str(home)).sub("run")).newest(print)
    assert newest is not None
    return began, newest.records


def steady(records: list[MetricPoint], skip: int) -> tuple[float, float]:
    """Return (images/s, fraction of the time waiting for data) of the steps after `skip`; each step counts the same."""
    used = [record.metrics for record in records if record.step > skip and "train/images_per_second" in record.metrics]
    seconds = [1 / metrics["train/images_per_second"] for metrics in used]  # per image; records are equally far apart
    waited = sum(s * metrics["train/data_wait_share"] for s, metrics in zip(seconds, used, strict=True))
    return len(used) / sum(seconds), waited / sum(seconds)


def measure_start(recipe: str, settings: dict[str, object], temporary: Path) -> dict[str, float]:
    """Return the seconds of each stage from the command to the end of the first step; the slowest worker counts."""
    trace = temporary / "trace"
    began, _ = run_pipeline(recipe, {**settings, "run.home": f"{temporary}/start"}, trace=trace)
    last = {event["event"]: event["t"] for event in events.read(trace)}
    times = [began, *(last[event] for _, event in STAGES)]
    return {what: end - start for (what, _), start, end in zip(STAGES, times, times[1:], strict=False)}


def compare(arguments: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    """Run all measurements and return them."""
    fashion = events.FASHION.is_dir()
    name, source = ("fashion_mnist", str(events.FASHION)) if fashion else ("mnist5k", "mnist5k")
    settings: dict[str, object] = {
        "data.uri": f"{temporary}/data",
        "schedule.unit": "steps",
        "schedule.length": arguments.steps,
        "schedule.warmup": arguments.skip,
        "compute.threads_per_worker": 1,
        "run.num_workers": arguments.workers,
        "run.log_every_steps": RECORD_EVERY,
        "run.checkpoint_every_steps": 100,
        "run.register_as": "",
    }
    short = {**settings, "schedule.length": 2, "schedule.warmup": 0}
    busy = os.getloadavg()[0]
    print(f"{name} on {os.cpu_count()} CPUs, load average before {busy:.1f}: other load makes every number noisy")
    prepare = [sys.executable, "pipelines/prepare.py", source, f"{temporary}/data", "--set", "prepare.validation=0"]
    subprocess.run(prepare, cwd=events.ROOT, check=True, stdout=subprocess.DEVNULL)
    print("from command to first step", flush=True)
    start = measure_start(name, short, temporary)
    for what, seconds in start.items():
        print(f"  {seconds:6.1f} s  {what}")
    print(f"  {sum(start.values()):6.1f} s  total", flush=True)
    recipe = load_recipe(name, {**settings, "model.num_classes": 10})
    print("round  pipeline  plain loop  ratio  waiting for data", flush=True)
    rounds = []
    for index in range(arguments.rounds):
        _, records = run_pipeline(name, {**settings, "run.home": f"{temporary}/round-{index}"})
        rate, waiting = steady(records, arguments.skip)
        job = Plain(
            recipe=recipe,
            source=source,
            workers=arguments.workers,
            steps=arguments.steps,
            skip=arguments.skip,
            port=_free_port(),
        )
        plain = run_plain(job)
        rounds.append(Round(pipeline=rate, plain=plain, data_wait_share=waiting, ratio=rate / plain))
        print(f"{index + 1:5}  {rate:8,.0f}  {plain:10,.0f}  {rate / plain:5.3f}  {waiting:16.1%}", flush=True)
    ratios = [each.ratio for each in rounds]
    print(f"images/s, pipeline / plain: {mean(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    setup = {"data": name, "model": recipe.model.name, "global_batch": recipe.optim.global_batch_size}
    machine = {"cpus": os.cpu_count(), "load_before": busy, "torch": torch.__version__}
    return {**vars(arguments), **setup, **machine, "first_step_s": start, "rounds": [asdict(each) for each in rounds]}


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare images/s of the whole pipeline and of a plain PyTorch loop.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=240, help="steps of each pass")
    parser.add_argument("--skip", type=int, default=40, help="first steps of each pass, which are not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="file for the measurements")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resnet-ray-overhead-") as temporary:
        measured = compare(arguments, Path(temporary))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
