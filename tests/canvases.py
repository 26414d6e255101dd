"""Multi-label images with exactly known classes: several Fashion-MNIST items on one canvas, by a seed."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.data.prepare.label_sets import LabelSets
from pipelines.data.prepare.source import Contents, Source
from pipelines.data.prepare.sources.arrays import Arrays

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CELL, MOST_ITEMS = 28, 4


def canvases(part: str, count: int, seed: int) -> tuple[npt.NDArray[np.uint8], list[list[int]]]:
    """Return `count` canvases of 56 x 56 x 3 with 0 to 4 items, and the classes of each. `part`: train or t10k."""
    pixels = gzip.decompress((FASHION_MNIST / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = np.frombuffer(gzip.decompress((FASHION_MNIST / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:], np.uint8)
    items = np.frombuffer(pixels[16:], np.uint8).reshape(-1, CELL, CELL)
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 2 * CELL, 2 * CELL), dtype=np.uint8)
    sets = []
    for image in images:
        cells = rng.permutation(MOST_ITEMS)[: rng.integers(0, MOST_ITEMS + 1)]
        chosen = rng.integers(0, len(items), len(cells))
        for cell, item in zip(cells.tolist(), chosen.tolist(), strict=True):
            top, left = CELL * (cell // 2), CELL * (cell % 2)
            image[top : top + CELL, left : left + CELL] = items[item]
        sets.append(sorted({int(labels[item]) for item in chosen}))
    return np.repeat(images[..., None], 3, axis=3), sets


def source(train: int, validation: int, test: int, seed: int = 0) -> Source:
    """Return a multi-label source of canvases. The validation split has items of the training part, drawn by itself."""
    made = {
        "train": canvases("train", train, 3 * seed),
        "validation": canvases("train", validation, 3 * seed + 1),
        "test": canvases("t10k", test, 3 * seed + 2),
    }
    distinct = sorted({tuple(labels) for _, sets in made.values() for labels in sets})
    splits = {
        split: Arrays(
            split=split,
            images=images,
            labels=np.array([distinct.index(tuple(labels)) for labels in sets], dtype=np.int32),
            keys=tuple(f"{split}-{index}" for index in range(len(sets))),
        )
        for split, (images, sets) in made.items()
    }
    contents = Contents(
        class_names=CLASSES, splits=splits, fingerprint=f"{seed:064d}", label_sets=LabelSets.of(distinct)
    )
    return Source(description="canvases of Fashion-MNIST items", side=2 * CELL, channels=3, load=lambda: contents)
