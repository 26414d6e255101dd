"""Counter-based random streams: what is drawn depends on (seed, purpose, epoch, index), never on who draws first.

Any process can open any stream at once, so the result of a run does not depend on the order of its tasks or the number
of its workers.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt


class Purpose(enum.IntEnum):
    """Streams of different purposes never meet, whatever the seed."""

    SHARDS = 0  # order in which prepare writes a split
    EPOCH = 1  # order of the row groups in an epoch
    ITEM = 2  # order of the rows in a work item
    CROP = 3  # crop of one sample in one epoch


def stream(seed: int, purpose: Purpose, epoch: int = 0, index: int = 0) -> np.random.Philox:
    """The stream's bit generator; 2^128 draws away from every other (epoch, index) of the same seed and purpose."""
    key = np.array([seed, purpose], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, epoch, index], dtype=np.uint64))


def generator(seed: int, purpose: Purpose, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """Distributions over `stream`; about 10 µs to make."""
    return np.random.Generator(stream(seed, purpose, epoch, index))


def permutation(bits: np.random.Philox, n: int) -> npt.NDArray[np.int64]:
    """A uniform permutation of 0..n-1.

    Built on the raw bits, whose values numpy guarantees from version to version (those of `Generator` it does not: NEP
    19), because a run that goes on after an upgrade must find its plan again.
    """
    keys = bits.random_raw(n)
    order = np.argsort(
        keys
    )  # several times as fast as the stable sort, from which it differs only where keys are equal
    drawn = keys[order]
    return np.argsort(keys, kind="stable") if (drawn[1:] == drawn[:-1]).any() else order
