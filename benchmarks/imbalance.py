"""Rare classes: plain training, class weights, balanced sampling and focal loss: `python -m benchmarks.imbalance`.

Fashion-MNIST is thinned: class k of 10 keeps 1000 * (1/50)^(k/9) training images, drawn by a seed, so the rarest class
has 20. The order of the classes is drawn too. The test split keeps 100 images of each class. Each seed thins anew, and
trains each method once from its own weights. Prints balanced accuracy and macro F1 on the test split (mean and
standard deviation over the seeds) and the recall of the three rarest classes; --json FILE writes every run.
"""

from __future__ import annotations

import argparse
import gzip
import json
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

import infra.cluster
from infra.storage import open_store
from pipelines.checkpoint import RunFolder
from pipelines.config.prepare import PrepareConfig
from pipelines.config.recipe import build_recipe
from pipelines.data.prepare.prepare import prepare
from pipelines.data.prepare.sources import open_source
from pipelines.training.driver import train

SOURCE = "/usr/share/datasets/fashion-mnist"
_CLASSES, _MOST, _RATIO, _TEST = 10, 1000, 50, 100
_RARE = 3
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "class weights": {"loss.class_weights": "auto"},
    "balanced sampling": {"data.sampling": "balanced"},
    "square-root sampling": {"data.sampling": "balanced", "data.sampling_power": 0.5},
    "focal loss": {"loss.focal_gamma": 2.0},
}
_RECIPE: dict[str, Any] = {
    "model.name": "resnet20",
    "model.depths": [1, 1, 1],
    "data.image_size": 28,
    "data.eval_resize": 28,
    "data.train_crop": "pad",
    "data.pad": 2,
    "data.device_cache": True,
    "data.decode_on": "device",
    "augment.mean": [0.286, 0.286, 0.286],
    "augment.std": [0.353, 0.353, 0.353],
    "optim.global_batch_size": 64,
    "optim.lr_per_256": 0.4,
    "optim.weight_decay": 5e-4,
    "schedule.warmup": 0.5,
    "schedule.shape": "cosine",
    "run.num_workers": 0,
    "run.eval_every_epochs": 1000,
    "run.metric": "balanced_accuracy",
}

Array = npt.NDArray[np.uint8]


def thinned(seed: int, folder: Path) -> list[int]:
    """Write a thinned Fashion-MNIST as IDX files; return the classes, from the most common to the rarest."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(_CLASSES)
    counts = {int(label): round(_MOST * _RATIO ** (-place / (_CLASSES - 1))) for place, label in enumerate(order)}
    for part, keep in (("train", counts), ("t10k", dict.fromkeys(range(_CLASSES), _TEST))):
        images, labels = _read(f"{part}-images-idx3-ubyte.gz"), _read(f"{part}-labels-idx1-ubyte.gz")
        rows = np.sort(
            np.concatenate([rng.choice(np.flatnonzero(labels == k), n, replace=False) for k, n in keep.items()])
        )
        _write(folder / f"{part}-images-idx3-ubyte.gz", images[rows])
        _write(folder / f"{part}-labels-idx1-ubyte.gz", labels[rows])
    return [int(label) for label in order]


def run(method: str, seed: int, data: Path, home: Path, epochs: float) -> dict[str, Any]:
    """Train one method; return its scores on the test split."""
    name = f"{method.replace(' ', '-')}-{seed}"
    settings = {"data.uri": str(data), "run.home": str(home), "run.name": name, "run.seed": seed}
    recipe = build_recipe({}, {**_RECIPE, **METHODS[method], **settings, "schedule.length": epochs})
    began = time.monotonic()
    outcome = train(recipe, Console(quiet=True))
    newest = RunFolder(open_store(str(home)).sub(name)).newest(print)
    assert newest is not None and newest.scored is not None
    confusion = newest.scored["confusion"]
    return {
        "method": method,
        "seed": seed,
        "balanced_accuracy": newest.metrics["test/balanced_accuracy"],
        "macro_f1": newest.metrics["test/macro_f1"],
        "recall": (np.diagonal(confusion) / confusion.sum(axis=1)).tolist(),
        "seconds": time.monotonic() - began,
        "steps": outcome.step,
    }


def _read(name: str) -> Array:
    data = gzip.decompress(Path(SOURCE, name).read_bytes())
    dimensions = data[3]
    shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
    return np.frombuffer(data[4 + 4 * dimensions :], dtype=np.uint8).reshape(shape)


def _write(file: Path, values: Array) -> None:
    head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    file.write_bytes(gzip.compress(head + values.tobytes(), compresslevel=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=15)
    parser.add_argument("--json", default="", help="file for every run")
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    infra.cluster.connect(min_cpus=1)
    with tempfile.TemporaryDirectory(prefix="imbalance-") as scratch:
        for seed in range(arguments.seeds):
            folder = Path(scratch, f"seed-{seed}")
            (folder / "source").mkdir(parents=True)
            order = thinned(seed, folder / "source")
            source, store = open_source(str(folder / "source"), validation=0.0), open_store(str(folder / "data"))
            prepare(source, store, PrepareConfig(validation=0.0, min_shards=2))
            for method in METHODS:
                one = run(method, seed, folder / "data", folder / "runs", arguments.epochs)
                one["rare"] = float(np.mean([one["recall"][label] for label in order[-_RARE:]]))
                found.append(one)
                print(json.dumps(one), flush=True)
    for method in METHODS:
        runs = [one for one in found if one["method"] == method]
        columns = [
            f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
            for key in ("balanced_accuracy", "macro_f1", "rare")
            for values in [[one[key] for one in runs]]
        ]
        print(f"{method:<22}", *columns, sep="  ")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
