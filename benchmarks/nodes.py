"""Test of the scaling model on one and two nodes of one core each: `python -m benchmarks.nodes`.

The nodes are simulated by `ray.cluster_utils.Cluster`, and the kernel pins each to one core. Ray's head and the driver,
of which a cluster has one, are not pinned. A node decodes and trains on the same core, so the times of the stages add
up instead of overlapping.

The model's constants are measured first. Nodes of one machine share its caches and memory, so as many cores are busy
as there are nodes. The constants are decoding by a data task's function, the training step on random images, and gloo
between two processes. With one node the head and the driver have the other core; their use of it is measured, and
with two nodes both lose that much.

Then `pipelines/train.py` trains on one and on two nodes. Its recorded images/s are compared with the model's, which
uses no measurement of a run on two nodes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from statistics import mean, median

import psutil
import torch
import torch.distributed as dist

from benchmarks.overhead import run_pipeline, steady
from benchmarks.peers.ours import blocks, photograph_stream, prepared
from benchmarks.photographs import write_photographs
from pipelines.config.recipe import Recipe, build_recipe
from pipelines.estimate.scaling import Job, Node, images_per_second
from pipelines.training.build import build_state, decided, step_config
from resnet_core.augment import step_generator
from resnet_core.compute import configure
from resnet_core.step import Microbatch, RankBatch, train_step

SIZE, PER_RANK, CLASSES, IMAGES = 64, 32, 10, 800
STEPS, SKIP = 240, 20  # a run decodes all its images while it trains, most of them early
_TAKE_S = 8.0  # measurement of each constant
_SENT = 64  # all-reduces
_STORE_BYTES = 400 * 2**20  # with 80 MiB, Ray Data's scheduler was short of memory and took most of a core


def settings(data: str, nodes: int) -> dict[str, object]:
    """Return the settings of a run on `nodes` nodes; the images per rank do not depend on their number."""
    return {
        "model.name": "resnet20",
        "model.num_classes": CLASSES,
        "data.uri": data,
        "data.image_size": SIZE,
        "data.train_crop": "random_resized",
        "data.eval_resize": SIZE,
        "augment.flip": True,
        "optim.global_batch_size": PER_RANK * nodes,
        "schedule.unit": "steps",
        "schedule.length": STEPS,
        "compute.precision": "fp32",
        "compute.threads_per_worker": 1,
        "run.num_workers": nodes,
        "run.cpus_per_worker": 2,  # a node has 3: one rank and one data task fit
        "run.log_every_steps": 5,
        "run.checkpoint_every_steps": 0,
    }


def recipe(data: str, nodes: int) -> Recipe:
    return decided(build_recipe({}, settings(data, nodes), where="nodes"), torch.device("cpu"))


def decoded_per_second(data: str) -> float:
    """Return the images that a data task's function makes per second of one core."""
    count, began = 0, 0.0
    for images in blocks(photograph_stream(data, "", step_rows=PER_RANK, size=SIZE)):
        now = time.perf_counter()
        began = began or now  # the first block is warm-up
        if now - began > _TAKE_S:
            return count / (now - began)
        count += len(images) if now > began else 0
    raise AssertionError("the plan has hundreds of epochs")


def trained_per_second(data: str) -> float:
    """Return the images per second of the training step on one core, without waiting for data."""
    wanted = recipe(data, 1)
    configure(wanted.compute, torch.device("cpu"))
    state = build_state(wanted, torch.device("cpu"), 1, IMAGES)
    images = torch.randint(0, 256, (PER_RANK, SIZE, SIZE, 3), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (PER_RANK,))
    batch = RankBatch(microbatches=[Microbatch(images_BHWC=images, labels_B=labels)], count=PER_RANK, world_size=1)
    config = step_config(wanted)
    times = []
    began = time.perf_counter()
    while (now := time.perf_counter()) - began < _TAKE_S:
        draws = step_generator(0, len(times), 0, torch.device("cpu"))
        train_step(state, batch, lr=0.1, config=config, generator=draws)
        times.append(time.perf_counter() - now)
    return PER_RANK / median(times)


def sent_per_second(rank: int, rendezvous: str, size: int, results: SimpleQueue[float]) -> None:
    """Run one of two processes, each on its own core, that add up gradients over gloo; rank 0 puts bytes/s."""
    pin(rank)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    gradients = torch.ones(size // 4)
    dist.all_reduce(gradients)
    began = time.perf_counter()
    for _ in range(_SENT):
        dist.all_reduce(gradients)
    if rank == 0:
        results.put(size * _SENT / (time.perf_counter() - began))  # two ranks: 2 (n - 1) / n is 1
    dist.destroy_process_group()


def network(size: int, folder: Path) -> float:
    context = get_context("spawn")
    results: SimpleQueue[float] = context.SimpleQueue()
    arguments = [(rank, str(folder / "rendezvous"), size, results) for rank in range(2)]
    both = [context.Process(target=sent_per_second, args=each) for each in arguments]
    for process in both:
        process.start()
    for process in both:
        process.join()
    return results.get()


def alone(core: int, data: str, results: SimpleQueue[tuple[float, float]]) -> None:
    """Measure one core while the other cores are measured; put (trained, decoded) images/s."""
    pin(core)
    torch.set_num_threads(1)
    results.put((trained_per_second(data), decoded_per_second(data)))


def constants(data: str, nodes: int) -> Node:
    """Return a node's constants, measured on `nodes` cores at once; the slowest step counts, as ranks wait for it."""
    context = get_context("spawn")
    results: SimpleQueue[tuple[float, float]] = context.SimpleQueue()
    every = [context.Process(target=alone, args=(core, data, results)) for core in range(nodes)]
    for process in every:
        process.start()
    trained, decoded = zip(*(results.get() for _ in every), strict=True)
    for process in every:
        process.join()
    return Node(
        device_images_per_s=min(trained), decode_cores=1, decode_images_per_core_s=mean(decoded), shared_cores=True
    )


def pin(core: int) -> None:
    """Pin this process, and the processes that it starts later, to one of its allowed cores."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})


@contextmanager
def cluster(nodes: int) -> Iterator[None]:
    """Start a head without CPUs, and nodes of one core each."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_AUTH_MODE"] = "disabled"  # the cluster listens on loopback, and only during this benchmark
    cores = sorted(os.sched_getaffinity(0))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": _STORE_BYTES})
    try:
        for core in cores[:nodes]:
            os.sched_setaffinity(0, {core})  # the node's processes inherit it
            made.add_node(num_cpus=3, object_store_memory=_STORE_BYTES)
            os.sched_setaffinity(0, set(cores))
        os.environ["RAY_ADDRESS"] = made.address
        yield
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        os.sched_setaffinity(0, set(cores))
        made.shutdown()


def unpinned_seconds() -> float:
    """Return the CPU time so far of this process's children that are not pinned: Ray's head and the driver."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if len(process.cpu_affinity()) > 1:
                total += sum(process.cpu_times()[:2])
    return total


@contextmanager
def watched(cores: list[float]) -> Iterator[None]:
    """Append the cores that the head and the driver use, every second until the block ends."""
    done = threading.Event()

    def watch() -> None:
        before, began = unpinned_seconds(), time.monotonic()
        while not done.wait(1.0):
            after, now = unpinned_seconds(), time.monotonic()
            cores.append(max(0.0, after - before) / (now - began))
            before, began = after, now

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measured(data: str, nodes: int, home: Path) -> tuple[float, float]:
    """Return (recorded images/s of a run after its first steps, cores that the head and the driver use)."""
    home.mkdir(parents=True)
    file = home / "recipe.toml"
    file.write_text("")
    cores: list[float] = []
    with cluster(nodes), watched(cores):
        _, records = run_pipeline(str(file), {**settings(data, nodes), "run.home": str(home / "runs")})
    return steady(records, SKIP)[0], median(cores)  # the median: most seconds are training, not the start


def compare(data: str, home: Path) -> list[float]:
    """Run one round: return measured / predicted images/s, for one and for two nodes."""
    state = build_state(recipe(data, 1), torch.device("cpu"), 1, IMAGES)
    gradient_bytes = 4 * sum(parameter.numel() for parameter in state.model.parameters())
    job = Job(
        images_per_gpu_step=PER_RANK,
        stored_bytes=110e3,
        decoded_bytes=3 * SIZE**2,
        gradient_bytes=gradient_bytes,
        overlapped=0.0,
    )
    sent = network(gradient_bytes, home)
    ratios, head = [], 0.0
    for nodes in (1, 2):
        node = replace(constants(data, nodes), network_bytes_per_s=sent)
        if nodes == 2:  # both cores are nodes: the head has none left
            node = replace(node, free_share=1 - head / nodes)
        predicted, _ = images_per_second(node, nodes, job)
        found, cores = measured(data, nodes, home / f"{nodes}")
        head = cores
        ratios.append(found / predicted)
        print(
            f"  {nodes} node(s): decode {node.decode_images_per_core_s:,.0f} images/s, step "
            f"{node.device_images_per_s:,.0f}, gloo {sent / 1e6:,.0f} MB/s, free {node.free_share:.2f}; model "
            f"{predicted:,.0f} images/s, measured {found:,.0f} ({ratios[-1]:.2f}); head and driver {cores:.2f} cores",
            flush=True,
        )
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description="Test the scaling model on nodes of one core each.")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) != 2:
        raise SystemExit("error: benchmarks.nodes needs exactly two cores: start it with taskset -c 0,1")
    with tempfile.TemporaryDirectory(prefix="resnet-ray-nodes-") as temporary:
        home = Path(temporary)
        write_photographs(home / "photographs", IMAGES, CLASSES * 2)
        data = prepared(home / "photographs" / "train", "original", str(home / "data"))
        rounds = []
        for number in range(arguments.rounds):
            print(f"round {number}", flush=True)
            folder = home / str(number)
            folder.mkdir()
            rounds.append(compare(data, folder))
        for nodes, ratios in enumerate(zip(*rounds, strict=True), start=1):
            print(f"{nodes} node(s): measured / model {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
