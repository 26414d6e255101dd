"""Blocks per second through Ray's split coordinator, and its ceiling: `python -m benchmarks.coordinator`.

`streaming_split` has one actor for all nodes, the coordinator. It runs Ray Data's scheduler and assigns every block to
a worker. The data tasks of this benchmark do nothing: they yield ready blocks, just large enough (128 KiB) for the
object store, where real blocks are. Consumers take blocks like workers and drop them. Nodes are simulated
(`ray.cluster_utils.Cluster`), with up to four consumers and four data tasks each.

On few cores the data tasks and the consumers compete with the coordinator. So two numbers are printed: the measured
blocks/s, and the coordinator's CPU time per block. The coordinator is a Python process that uses at most one core. So
on any cluster its ceiling is one second divided by that CPU time.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import psutil
import ray
import ray.data

from pipelines.data.tasks.ray_tasks import quiet

CONSUMERS = (1, 2, 4, 8)
BLOCK_BYTES = 128 * 2**10  # Ray keeps objects below 100 kB in the process of their owner
CROP_BYTES = 3 * 224**2
_TASKS, _BLOCKS_OF_A_TASK = 500, 1000  # more than the consumers take
WARMUP_S = 4.0
PER_NODE = 4


@contextmanager
def cluster(consumers: int) -> Iterator[None]:
    """Start a head without CPUs, and nodes for up to four consumers and four data tasks."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_AUTH_MODE"] = "disabled"  # the cluster listens on loopback, and only during this benchmark
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 150 * 2**20})
    try:
        for _ in range(-(-consumers // PER_NODE)):
            made.add_node(num_cpus=2 * PER_NODE, object_store_memory=150 * 2**20)
        ray.init(address=made.address, logging_level="ERROR", log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        made.shutdown()


@ray.remote(num_cpus=1)
class Consumer:
    """Takes blocks for some time, like `pipelines.training.batches.RankBatches`."""

    def take(self, part: Any, seconds: float) -> tuple[int, float, float]:
        """Return (blocks, start of the count, end of the count), after the warm-up; times are Unix seconds."""
        count, begins, began, now = 0, 0.0, 0.0, 0.0
        for _ in part.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
            now = time.time()
            begins = begins or now + WARMUP_S
            if now >= begins:
                began = began or now
                count += 1
            if now > begins + seconds:
                break
        return count - 1, began, now


def stream(data_tasks: int) -> ray.data.Dataset:
    """Build an endless data set of blocks with the settings of `pipelines.training.stream.build_dataset`."""

    def nothing(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        block = {"image": np.zeros((1, BLOCK_BYTES), dtype=np.uint8)}
        for _ in range(_BLOCKS_OF_A_TASK):
            yield block

    dataset = quiet(
        ray.data.range(_TASKS, override_num_blocks=_TASKS).map_batches(nothing, batch_size=None, num_cpus=1)
    )
    dataset.context.target_max_block_size = BLOCK_BYTES * 3 // 4
    dataset.context._max_num_blocks_in_streaming_gen_buffer = 4
    dataset.context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(cpu=data_tasks, gpu=0)
    return dataset


def coordinators() -> list[psutil.Process]:
    """Return the processes of split coordinators."""
    return [
        each for each in psutil.process_iter(["cmdline"]) if "SplitCoordinator" in " ".join(each.info["cmdline"] or ())
    ]


def measured(consumers: int, several: int, seconds: float) -> tuple[float, float]:
    """Measure (blocks/s over all consumers, CPU milliseconds of the coordinators per block)."""
    with cluster(consumers):
        each = consumers // several
        parts = [part for _ in range(several) for part in stream(max(1, each)).streaming_split(each, equal=True)]
        taken = [Consumer.remote().take.remote(part, seconds) for part in parts]  # type: ignore[attr-defined]
        clocks: list[tuple[float, float]] = []
        while ray.wait(taken, num_returns=1, timeout=0.5)[0] == []:  # until one consumer is done
            clocks.append((time.time(), sum(sum(each.cpu_times()[:2]) for each in coordinators())))
        found = ray.get(taken)
    since, until = max(began for _, began, _ in found), min(ended for _, _, ended in found)
    inside = [(moment, spent) for moment, spent in clocks if since <= moment <= until]
    busy = (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])
    rate = sum(count / (ended - began) for count, began, ended in found)
    return rate, 1000 * busy / rate


def main() -> None:
    parser = argparse.ArgumentParser(description="Blocks per second through Ray's split coordinator.")
    parser.add_argument("--consumers", type=int, nargs="+", default=CONSUMERS)
    parser.add_argument("--coordinators", type=int, default=1, help="streams that share the consumers (default: 1)")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    several = arguments.coordinators
    print(f"{several} coordinator(s), {os.cpu_count()} cores, {arguments.rounds} rounds of {arguments.seconds:g} s")
    sizes = (16, 64)
    print(
        f"{'consumers':>9} {'blocks/s':>24} {'CPU ms a block':>24} {'ceiling, blocks/s':>18} "
        + " ".join(f"{f'images/s, {size} MiB':>17}" for size in sizes)
    )
    for consumers in arguments.consumers:
        found = [measured(consumers, several, arguments.seconds) for _ in range(arguments.rounds)]
        rates, costs = zip(*found, strict=True)
        ceiling = several * 1000 / median(costs)
        images = " ".join(f"{ceiling * (size * 2**20 // CROP_BYTES):17,.0f}" for size in sizes)
        print(f"{consumers:9} {told(rates):>24} {told(costs):>24} {ceiling:18,.0f} {images}", flush=True)


def told(values: tuple[float, ...]) -> str:
    return f"{median(values):,.2f} ({min(values):,.2f}-{max(values):,.2f})"


if __name__ == "__main__":
    main()
