"""Blocks per second through Ray's split coordinator, and its ceiling: `python -m benchmarks.coordinator`.

`streaming_split` has one actor, the coordinator, that runs Ray Data's scheduler and hands every block to its worker,
whatever the number of nodes. Data tasks here do nothing: they yield blocks that are ready, just large enough (128 KiB)
to live in the object store, as real ones do. Consumers take them as workers do and drop them. Nodes are Ray's own
simulated ones (`ray.cluster_utils.Cluster`), up to four consumers and four data tasks on each.

On few cores the data tasks and the consumers compete with the coordinator. So two numbers are told: blocks/s as found,
and the coordinator's CPU time for a block. It is a Python process, at most one core's worth: the ceiling is one second
over that CPU time, whatever else the cluster has.
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

from pipelines.data.execution import quiet

CONSUMERS = (1, 2, 4, 8)
BLOCK_BYTES = 128 * 2**10  # Ray keeps what is smaller than 100 kB with its owner
CROP_BYTES = 3 * 224**2
_TASKS, _BLOCKS_OF_A_TASK = 500, 1000  # more than anybody takes
WARMUP_S = 4.0
PER_NODE = 4


@contextmanager
def cluster(consumers: int) -> Iterator[None]:
    """A head that computes nothing, and nodes of up to four consumers and four data tasks."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_AUTH_MODE"] = "disabled"  # on loopback, for as long as this takes
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
    """Takes blocks for some time, as `pipelines.feed.Feed` does."""

    def take(self, part: Any, seconds: float) -> tuple[int, float, float]:
        """(blocks, first and last moment of counting), after the warm-up."""
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
    """Blocks without end, by the settings of `pipelines.data.ingest.build_dataset`."""

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
    """The processes of split coordinators."""
    return [
        each for each in psutil.process_iter(["cmdline"]) if "SplitCoordinator" in " ".join(each.info["cmdline"] or ())
    ]


def measured(consumers: int, several: int, seconds: float) -> tuple[float, float]:
    """(blocks/s over all consumers, CPU milliseconds of the coordinators for a block)."""
    with cluster(consumers):
        each = consumers // several
        parts = [part for _ in range(several) for part in stream(max(1, each)).streaming_split(each, equal=True)]
        taken = [Consumer.remote().take.remote(part, seconds) for part in parts]  # type: ignore[attr-defined]
        clocks: list[tuple[float, float]] = []
        while ray.wait(taken, num_returns=1, timeout=0.5)[0] == []:  # until one of them has enough
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
