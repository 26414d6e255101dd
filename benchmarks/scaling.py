"""Images per second against nodes, by a model: ImageNet-1k at 1, 8 and 64 GPUs, a billion images at 1,024.

    python -m benchmarks.scaling [--epochs 90] [--gpu-hour 4.92]

A run is as fast as its slowest stage: reading from the storage, decoding on CPUs, the object store's copies, Ray's
coordinator that hands out blocks, and the devices' steps with their all-reduce and their stragglers, all of which
overlap (docs/scaling.md).
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass, replace

IMAGENET, BILLION = 1_281_167, 1_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One machine and its share of what it stands on."""

    gpus: int = 1
    device_images_per_s: float  # of one GPU, without waiting for anything
    decode_cores: float  # that nothing else uses
    decode_images_per_core_s: float
    storage_bytes_per_s: float = math.inf  # read from the object storage
    store_bytes_per_s: float = math.inf  # through Ray's object store to the workers
    network_bytes_per_s: float = math.inf  # between nodes, each way
    shared_cores: bool = False  # it trains on the cores that decode: one or the other
    free_share: float = 1.0  # of those cores, where Ray's head and the driver have no machine of their own


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a run asks of a node."""

    images_per_gpu_step: int
    stored_bytes: float  # of one image
    decoded_bytes: float
    gradient_bytes: float  # of all parameters, each step
    overlapped: float = 0.7  # share of the all-reduce that runs beside the backward pass
    blocks_per_s: float = math.inf  # through Ray's coordinator, of which a run has one, whatever the number of nodes
    block_images: float = 1.0
    step_spread: float = 0.0  # standard deviation of a step's time over ranks, as a share of its mean


def limits(node: Node, nodes: int, job: Job) -> dict[str, float]:
    """Images per second of the whole cluster that each stage alone would allow."""
    decode = nodes * node.decode_cores * node.decode_images_per_core_s
    device = nodes * node.gpus * job.images_per_gpu_step / step_seconds(node, nodes, job)
    return {
        "storage": nodes * node.storage_bytes_per_s / job.stored_bytes,
        "decode": decode,
        "object store": nodes * node.store_bytes_per_s / job.decoded_bytes,
        "coordinator": job.blocks_per_s * job.block_images,
        "device": node.free_share / (1 / decode + 1 / device) if node.shared_cores else device,
    }


def step_seconds(node: Node, nodes: int, job: Job) -> float:
    """Time of one step: the slowest rank's compute, and what of the all-reduce does not fit beside it."""
    compute = job.images_per_gpu_step / node.device_images_per_s
    ranks = nodes * node.gpus
    slowest = compute * (1 + job.step_spread * expected_maximum(ranks))
    # a ring passes 2 (n - 1) / n of the gradients through the link that each node's GPUs share
    reduce = 2 * (nodes - 1) / nodes * job.gradient_bytes / node.network_bytes_per_s
    return slowest + max(0.0, reduce - job.overlapped * compute)


def expected_maximum(ranks: int) -> float:
    """Of so many normal variables, in standard deviations (Blom's approximation)."""
    return 0.0 if ranks < 2 else statistics.NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def images_per_second(node: Node, nodes: int, job: Job) -> tuple[float, str]:
    """The model's answer, and the stage that it comes from."""
    stage, rate = min(limits(node, nodes, job).items(), key=lambda item: item[1])
    return rate, stage


# A node of eight H100 SXM; where each number is from stands in docs/scaling.md.
GPU_NODE = Node(
    gpus=8,
    device_images_per_s=2_790,
    decode_cores=88,
    decode_images_per_core_s=714,
    storage_bytes_per_s=12.5e9 * 0.8,
    store_bytes_per_s=8e9,
    network_bytes_per_s=400e9 * 0.6,
)
IMAGENET_JOB = Job(
    images_per_gpu_step=256,
    stored_bytes=110e3,
    decoded_bytes=3 * 224 * 224,
    gradient_bytes=25.6e6 * 4,
    blocks_per_s=190,
    block_images=256,
    step_spread=0.01,
)


def table(epochs: float, gpu_hour: float) -> list[str]:
    """The scales that docs/scaling.md tells, and what so many epochs cost."""
    lines = [
        f"{'GPUs':>5} {'images':>13} {'images/s':>10} {'limit':>12} {'epoch':>9} {'efficiency':>10} "
        f"{f'{epochs:g} epochs':>11} {'cost':>12}"
    ]
    one = replace(GPU_NODE, gpus=1, decode_cores=11, storage_bytes_per_s=1.25e9, store_bytes_per_s=1e9)
    alone = images_per_second(one, 1, IMAGENET_JOB)[0]
    for gpus, images in ((1, IMAGENET), (8, IMAGENET), (64, IMAGENET), (1024, BILLION)):
        node, nodes = (one, 1) if gpus == 1 else (GPU_NODE, gpus // 8)
        rate, stage = images_per_second(node, nodes, IMAGENET_JOB)
        seconds = images / rate
        hours = epochs * seconds / 3600
        lines.append(
            f"{gpus:>5} {images:>13,} {rate:>10,.0f} {stage:>12} {seconds:>7,.0f} s {rate / (gpus * alone):>10.0%} "
            f"{hours:>9.1f} h {f'${hours * gpus * gpu_hour:,.0f}':>12}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Images per second, hours and cost against nodes, by a model.")
    parser.add_argument("--epochs", type=float, default=90.0, help="of a run (default: 90)")
    parser.add_argument("--gpu-hour", type=float, default=4.92, help="price of a GPU's hour (default: 4.92)")
    arguments = parser.parse_args()
    print("\n".join(table(arguments.epochs, arguments.gpu_hour)))


if __name__ == "__main__":
    main()
