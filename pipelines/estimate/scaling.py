"""Model of images per second by nodes (docs/scaling.md).

All stages overlap, so a run is as fast as its slowest stage:

- reading from the storage;
- decoding on CPUs;
- copies through the object store;
- Ray's coordinator, which assigns blocks;
- the devices' steps, with all-reduce and stragglers.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass


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
    return 0.0 if ranks <= 1 else statistics.NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def images_per_second(node: Node, nodes: int, job: Job) -> tuple[float, str]:
    """Return the model's images per second, and the stage that limits them."""
    stage, rate = min(limits(node, nodes, job).items(), key=lambda item: item[1])
    return rate, stage
