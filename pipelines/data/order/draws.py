"""Balanced sampling: which images an epoch draws, how often, and in which pass over the row groups. Pure numpy.

An epoch has as many draws as the split has images, and each class gets a fixed number of them. The images of a class
follow each other in permutations, one after the other, over all epochs: epoch e takes the next part of that sequence.
So no image of a class is drawn again before all others were, and any epoch can be computed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.data.order.rng import Purpose, permutation, stream

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Balanced:
    """Settings of balanced sampling for one split."""

    labels: npt.NDArray[np.integer]  # [N], the class of each image in id order; an image below 0 is never drawn
    power: float = 0.0  # q: a class of n images gets draws in proportion to n^q (Kang et al. 2020, Equation 1)
    passes: int = 8  # most passes over the row groups in an epoch

    def quotas(self) -> Ints:
        """Return the draws of each class in every epoch, int64 [K]; they add up to the number of images.

        Fractions are rounded by largest remainder, so every class with images has at least one draw.
        """
        counts = np.bincount(self.labels[self.labels >= 0])
        weights = np.where(counts, counts.astype(np.float64) ** self.power, 0.0)
        shares = len(self.labels) * weights / weights.sum()
        quotas: Ints = np.floor(shares).astype(np.int64)
        left = len(self.labels) - int(quotas.sum())
        quotas[np.argsort(quotas - shares, kind="stable")[:left]] += 1
        return quotas

    def repetitions(self, seed: int, epoch: int) -> Ints:
        """Return how often the epoch draws each image, int64 [N].

        Summed over epochs 0 to e, the counts of a class's images differ by at most one.
        """
        drawn = np.zeros(len(self.labels), dtype=np.int64)
        quotas = self.quotas()
        members = np.argsort(self.labels, kind="stable")
        ends = np.searchsorted(self.labels[members], np.arange(len(quotas)), side="right")
        begin = int(np.count_nonzero(self.labels < 0))
        for label, (quota, end) in enumerate(zip(quotas.tolist(), ends.tolist(), strict=True)):
            images, begin = members[begin:end], end
            low, high = epoch * quota, (epoch + 1) * quota
            while low < high:  # the class's sequence of permutations, from `low` to `high`
                turn, place = divmod(low, len(images))
                taken = min(len(images) - place, high - low)
                if taken == len(images):
                    whole = (high - low) // taken
                    drawn[images] += whole
                    low += whole * taken
                    continue
                order = permutation(stream(seed, Purpose.DRAW, turn, label), len(images))
                drawn[images[order[place : place + taken]]] += 1
                low += taken
        return drawn

    def epoch(self, seed: int, epoch: int) -> EpochDraws:
        """Return the draws of an epoch, numbered by pass, then by image."""
        repetitions = self.repetitions(seed, epoch)
        passes = max(1, min(self.passes, int(repetitions.max())))
        row = np.repeat(np.arange(len(repetitions), dtype=np.int32), repetitions)
        copy = np.arange(len(row), dtype=np.int32) - np.repeat(np.cumsum(repetitions) - repetitions, repetitions)
        first = stream(seed, Purpose.PASS, epoch).random_raw(len(repetitions)) % np.uint64(passes)
        turn = ((copy + first.astype(np.int32)[row]) % passes).astype(np.int32)
        order = np.argsort(turn, kind="stable")
        return EpochDraws(
            row=row[order],
            copy=copy[order].astype(np.int32),
            ends=np.cumsum(np.bincount(turn, minlength=passes)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochDraws:
    """The draws of an epoch; draw d is number d."""

    row: npt.NDArray[np.int32]  # [D], ordinal of the drawn image in its split
    copy: npt.NDArray[np.int32]  # [D], how often the epoch has drawn the image before
    ends: Ints  # one per pass: the number of the draw after its last one
