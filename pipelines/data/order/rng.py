"""Counter-based random streams: draws depend on (seed, purpose, epoch, index), never on the order of drawing.

Any process can open any stream directly. The result of a run therefore does not depend on the order of its tasks or
the number of its workers.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt


class Purpose(enum.IntEnum):
    """Purposes of random streams. Streams of different purposes never overlap, for any seed."""

    SHARDS = 0  # order in which prepare writes the rows of a split
    EPOCH = 1  # order of the row groups in an epoch
    ITEM = 2  # order of the rows in a work item
    CROP = 3  # crop of one sample in one epoch
    DRAW = 4  # balanced sampling: order of the images of a class
    PASS = 5  # balanced sampling: pass of an epoch in which an image is drawn first


def stream(seed: int, purpose: Purpose, epoch: int = 0, index: int = 0, copy: int = 0) -> np.random.Philox:
    """Return the stream's bit generator.

    Any other (epoch, index) of the same seed and purpose is 2^128 draws away, and any other `copy` 2^64.
    """
    key = np.array([seed, purpose], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, copy, epoch, index], dtype=np.uint64))


def generator(seed: int, purpose: Purpose, epoch: int = 0, index: int = 0, copy: int = 0) -> np.random.Generator:
    """Return a `Generator` over `stream`. Construction takes about 10 µs."""
    return np.random.Generator(stream(seed, purpose, epoch, index, copy))


def permutation(bits: np.random.Philox, n: int) -> npt.NDArray[np.int64]:
    """Return a uniform permutation of 0..n-1.

    It uses the raw bits, which numpy keeps the same in all versions. numpy may change the values of `Generator`
    (NEP 19), but a run that resumes after an upgrade must follow the same plan.
    """
    keys = bits.random_raw(n)
    # Several times as fast as the stable sort. The two differ only if keys are equal.
    order = np.argsort(keys)
    drawn = keys[order]
    return np.argsort(keys, kind="stable") if (drawn[1:] == drawn[:-1]).any() else order
