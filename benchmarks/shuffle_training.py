"""Effect of the mixing of batches on accuracy: one network trained on the orders of `benchmarks.shuffle`.

`python -m benchmarks.shuffle_training /usr/share/datasets/fashion-mnist` trains a perceptron of 256 units on
Fashion-MNIST's 60,000 images for 10 epochs: SGD with momentum 0.9, batches of 256, cosine rate from 0.1. The plan's
row groups and items have ImageNet's sizes (58 and 222 rows), so that batches of two epochs overlap as much as there.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import math
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.shuffle import Order, Scale, ours, perfect, unshuffled, web_dataset

SCALE = Scale(
    name="Fashion-MNIST with ImageNet's row groups",
    images=60_000,
    classes=10,
    image_bytes=110_000,
    group_rows=58,
    item_rows=222,
    block_rows=27,
    batch=256,
    wds_shard=1_000,
)
EPOCHS = 10

Pictures = tuple[torch.Tensor, torch.Tensor]


def pictures(folder: Path, part: str) -> Pictures:
    """Return pixels in [0, 1] and labels, sorted by class as in folders."""
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), dtype=np.uint8, offset=16).reshape(-1, 784)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), dtype=np.uint8, offset=8).astype(np.int64)
    order = np.argsort(labels, kind="stable")
    return torch.from_numpy(pixels[order].astype(np.float32) / 255), torch.from_numpy(labels[order])


def test_error(order: Order, seed: int, train: Pictures, test: Pictures) -> float:
    """Return the test error after the last epoch, in percent."""
    torch.manual_seed(seed)
    images, labels = train
    model = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    steps = len(labels) // SCALE.batch
    for epoch in range(EPOCHS):
        taken = torch.from_numpy(order(seed * EPOCHS + epoch))
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * (epoch * steps + step) / (EPOCHS * steps)))
            rows = taken[step * SCALE.batch : (step + 1) * SCALE.batch]
            optimizer.zero_grad()
            cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    with torch.inference_mode():
        return float((model(test[0]).argmax(1) != test[1]).float().mean()) * 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the four files of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, test = (pictures(args.folder, part) for part in ("train", "t10k"))
    scale = dataclasses.replace(SCALE, images=len(train[1]))
    orders = {
        "perfect": perfect(scale),
        "ours, in order": ours(scale),
        "ours, in order, task_mb = 128": ours(scale, item_rows=892),
        "ours, 2 tasks at once": ours(scale, tasks=2),
        "WebDataset, shards by class, buffer 10k": web_dataset(scale, by_class=True),
        "ours, in order, if prepare did not shuffle": ours(scale, by_class=True),
        "no shuffle": unshuffled(scale),
    }
    for name, order in orders.items():
        errors = [test_error(order, seed, train, test) for seed in range(args.seeds)]
        print(f"{name:44} {mean(errors):6.2f} ± {stdev(errors):.2f} %", flush=True)


if __name__ == "__main__":
    main()
