"""Model of images per second by nodes: ImageNet-1k on 1, 8 and 64 GPUs, a billion images on 1,024 GPUs.

    python -m benchmarks.scaling [--epochs 90] [--gpu-hour 4.92]

All stages overlap, so a run is as fast as its slowest stage (docs/scaling.md):

- reading from the storage;
- decoding on CPUs;
- copies through the object store;
- Ray's coordinator, which assigns blocks;
- the devices' steps, with all-reduce and stragglers.
"""

from __future__ import annotations

import argparse
import math
import statistics
from dataclasses import dataclass, replace

IMAGENET, BILLION = 1_281_167, 1_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """Speeds of one machine, and its part of the storage and the network."""

    gpus: int = 1
    device_images_per_s: float  # one GPU, without waiting for anything
    decode_cores: float  # cores that nothing else uses
    decode_images_per_core_s: float
    storage_bytes_per_s: float = math.inf  # read from the object storage
    store_bytes_per_s: float = math.inf  # through Ray's object store to the workers
    network_bytes_per_s: float = math.inf  # between nodes, each way
    shared_cores: bool = False  # the same cores train and decode, one at a time
    free_share: float = 1.0  # fraction of those cores that Ray's head and the driver do not use


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Work of a run per image and per step."""

    images_per_gpu_step: int
    stored_bytes: float  # of one image
    decoded_bytes: float
    gradient_bytes: float  # of all parameters, per step
    overlapped: float = 0.7  # fraction of a step's compute during which the all-reduce can run
    blocks_per_s: float = math.inf  # through Ray's coordinator, of which a run has one for all nodes
    block_images: float = 1.0
    step_spread: float = 0.0  # standard deviation of a step's time over ranks, as a fraction of its mean


def limits(node: Node, nodes: int, job: Job) -> dict[str, float]:
    """Return the images per second of the whole cluster that each stage alone would allow."""
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
    """Return the time of one step: the slowest rank's compute, and the part of the all-reduce after it."""
    compute = job.images_per_gpu_step / node.device_images_per_s
    ranks = nodes * node.gpus
    slowest = compute * (1 + job.step_spread * expected_maximum(ranks))
    # a ring passes 2 (n - 1) / n of the gradients through the link that each node's GPUs share
    reduce = 2 * (nodes - 1) / nodes * job.gradient_bytes / node.network_bytes_per_s
    return slowest + max(0.0, reduce - job.overlapped * compute)


def expected_maximum(ranks: int) -> float:
    """Return the expected maximum of `ranks` normal variables, in standard deviations (Blom's approximation)."""
    return 0.0 if ranks < 2 else statistics.NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def images_per_second(node: Node, nodes: int, job: Job) -> tuple[float, str]:
    """Return the model's images per second, and the stage that limits them."""
    stage, rate = min(limits(node, nodes, job).items(), key=lambda item: item[1])
    return rate, stage


# A node of eight H100 SXM; docs/scaling.md has the source of each number.
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
    """Return the table of docs/scaling.md, with the cost of `epochs` epochs."""
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
    parser = argparse.ArgumentParser(description="Predict images per second, hours and cost by number of nodes.")
    parser.add_argument("--epochs", type=float, default=90.0, help="epochs of a run (default: 90)")
    parser.add_argument("--gpu-hour", type=float, default=4.92, help="price of one GPU hour (default: 4.92)")
    arguments = parser.parse_args()
    print("\n".join(table(arguments.epochs, arguments.gpu_hour)))


if __name__ == "__main__":
    main()
