"""Model of images per second by nodes: ImageNet-1k on 1, 8 and 64 GPUs, a billion images on 1,024 GPUs.

    python -m benchmarks.scaling [--epochs 90] [--gpu-hour 4.92]

The model is `pipelines.estimate.scaling`; docs/scaling.md explains it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from pipelines.estimate.scaling import Job, Node, images_per_second

IMAGENET, BILLION = 1_281_167, 1_000_000_000


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
    blocks_per_s=328,
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
