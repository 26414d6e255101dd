"""Held-out splits of samples that have several classes, or that belong to groups which no split may tear apart.

The method is iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011): the rarest class is dealt first, as
later classes have more images to make up for what it decided. A group is dealt as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.data.prepare.label_sets import LabelSets
from pipelines.data.prepare.source import Samples

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Units:
    """Groups of samples, or single samples, with their images of each class."""

    of_sample: Ints  # each sample's unit
    keys: list[str]  # name of each unit; decides the order in which units are dealt
    classes: list[dict[int, int]]  # images by class, for each unit; images of no class count as a further class
    totals: list[int]  # images of each class

    @classmethod
    def of(cls, samples: Samples, groups: Sequence[str] | None, classes: int, sets: LabelSets | None) -> _Units:
        keys = [samples.key(position) for position in range(len(samples))]
        names = keys if groups is None else [group or key for group, key in zip(groups, keys, strict=True)]
        distinct, of_sample = np.unique(np.array(names, dtype=object), return_inverse=True)
        per_unit: list[dict[int, int]] = [{} for _ in distinct]
        totals = [0] * (classes + 1)
        for unit, label in zip(of_sample.tolist(), samples.labels.tolist(), strict=True):
            for each in (sets[label] or [classes]) if sets is not None else [label]:
                per_unit[unit][each] = per_unit[unit].get(each, 0) + 1
                totals[each] += 1
        return cls(of_sample=of_sample.astype(np.int64), keys=list(distinct), classes=per_unit, totals=totals)


def stratified(
    samples: Samples,
    share: float,
    seed: int,
    *,
    classes: int,
    sets: LabelSets | None = None,
    groups: Sequence[str] | None = None,
) -> npt.NDArray[np.bool_]:
    """Return a mask of the samples to hold out: about `share` of each class, in whole groups.

    Every class keeps at least one group (or image) that is not held out. A class that has two gives at least one.

    Args:
        samples: the samples to choose from.
        share: fraction to hold out.
        seed: decides which of equal choices is taken, by the names of groups and samples, not by their order.
        classes: number of classes.
        sets: the label sets of multi-label samples.
        groups: each sample's group; a sample whose group is "" is a group of its own. None = no groups.
    """
    units = _Units.of(samples, groups, classes, sets)
    members: list[list[int]] = [[] for _ in units.totals]
    for unit in _by_hash(units.keys, seed):
        for each in units.classes[unit]:
            members[each].append(unit)
    kept = [len(each) for each in members]  # units of each class that are not held out
    held = [0] * len(members)  # held-out images of each class
    wanted = [
        max(1.0, share * total) if share and count > 1 else 0.0 for total, count in zip(units.totals, kept, strict=True)
    ]
    out = np.zeros(len(units.keys), dtype=bool)

    def is_spare(unit: int) -> bool:
        return not out[unit] and all(kept[each] > 1 for each in units.classes[unit])

    def hold(unit: int) -> None:
        out[unit] = True
        for each, images in units.classes[unit].items():
            held[each] += images
            kept[each] -= 1

    for each in sorted(range(len(members)), key=lambda each: (len(members[each]), each)):
        for unit in members[each]:
            of_unit = units.classes[unit].items()
            if all(held[other] + images / 2 <= wanted[other] for other, images in of_unit) and is_spare(unit):
                hold(unit)
        spare = [unit for unit in members[each] if is_spare(unit)] if wanted[each] and not held[each] else []
        if spare:  # all of its groups are large, or have a class of which enough is held out: take the smallest
            hold(min(spare, key=lambda unit: sum(units.classes[unit].values())))
    return np.asarray(out[units.of_sample])


def _by_hash(keys: Sequence[str], seed: int) -> list[int]:
    """Return the positions of the keys in the order of their seeded hashes."""
    return sorted(range(len(keys)), key=lambda place: hashlib.sha256(f"{seed}:{keys[place]}".encode()).digest())
