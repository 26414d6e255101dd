"""Which split each file of a source belongs to, and which images become the splits that the source lacks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from pipelines.data.samples import SPLITS, TEST, TRAIN, VALIDATION, Contents, Labels, Samples, Source, held_out

if TYPE_CHECKING:
    from infra.storage import Store

HELD_OUT_NAMES = {"val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "test": TEST}
_SPLIT_OF = {TRAIN: TRAIN, **HELD_OUT_NAMES}
_NAMED = re.compile(rf"({'|'.join(_SPLIT_OF)})(?![a-z])", re.IGNORECASE)
_MOST_VALIDATION = 10_000  # images: more make a measurement slower and hardly more certain
_LEAST_FOR_VALIDATION = 3  # training images of a class, so that it keeps two

_Kind = TypeVar("_Kind", bound=Samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What the user decides about a source."""

    holdout: float  # share of each class that becomes the test split where the source has none
    validation: float  # share of each class's training images that becomes the validation split, likewise
    seed: int  # decides which samples are held out
    keep: Store | None = None  # where the index of archives is kept until the data set is finished


@dataclass(frozen=True, kw_only=True, slots=True)
class Assigned:
    """Files by split."""

    files: Mapping[str, tuple[str, ...]]
    names: tuple[str, ...]  # what the source calls its splits; empty = it has none, and all files are for training

    def layout(self, holdout: float) -> str:
        """For descriptions."""
        return listed(self.names) if self.names else f"{holdout:g} of each class held out"


def listed(names: Iterable[str]) -> str:
    """ "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def names_by_split(names: Iterable[str], where: str) -> dict[str, str]:
    """What the source calls each of its splits, in the order of `SPLITS`. A single held-out split is the test split.

    Args:
        names: those of `names` that are no name of a split are passed over.
        where: the source, for messages.

    Raises:
        UserError: two names mean the same split.
    """
    found: dict[str, str] = {}
    for name in names:
        split = _SPLIT_OF.get(name.lower(), "")
        if split in found:
            raise UserError(f"{where} has both {found[split]} and {name}, and both mean the {split} split: keep one")
        if split:
            found[split] = name
    if TEST not in found and VALIDATION in found:
        found[TEST] = found.pop(VALIDATION)
    return {split: found[split] for split in SPLITS if split in found}


def assign(paths: Iterable[str], where: str) -> Assigned:
    """Sort files into splits by a folder called train, val, …, or by a file name that begins so.

    Raises:
        UserError: some files say their split and none is for training, or some say nothing beside others that do.
    """
    named: dict[str, list[str]] = {}
    for path in paths:
        named.setdefault(_split_name(path), []).append(path)
    unnamed = named.pop("", [])
    if not named:
        return Assigned(files={TRAIN: tuple(unnamed)}, names=())
    if unnamed:
        raise UserError(f"{where}/{unnamed[0]} does not say its split: begin its name with {TRAIN} or val")
    names = names_by_split(named, where)
    if TRAIN not in names:
        raise UserError(f"{where} has {named.popitem()[1][0]} but no file whose name begins with {TRAIN}")
    return Assigned(files={split: tuple(named[name]) for split, name in names.items()}, names=tuple(names.values()))


def _split_name(path: str) -> str:
    """The split that the nearest folder or the file's name says; empty where none does."""
    parts = PurePosixPath(path)
    if match := _NAMED.match(parts.name):
        return match[1].lower()
    folders = [folder.lower() for folder in parts.parts[:-1]]
    return next((name for name in reversed(folders) if name in _SPLIT_OF), "")


def hold_out(samples: _Kind, choice: Choice) -> dict[str, _Kind]:
    """Split off the share `holdout` of each class as the test split, at least one sample of a class that has two."""

    def count(members: int) -> int:
        return min(max(1, round(choice.holdout * members)), members - 1) if choice.holdout else 0

    return _parted(samples, TEST, _chosen(samples, count, choice.seed))


def with_validation(source: Source, choice: Choice) -> Source:
    """The source with a validation split taken out of its training images, unless it has one of its own."""

    def load() -> Contents:
        contents = source.load()
        if VALIDATION in contents.splits or not choice.validation:
            return contents
        parts = {**contents.splits, **_hold_out_validation(contents.splits[TRAIN], choice)}
        return replace(contents, splits={split: parts[split] for split in SPLITS if split in parts})

    return replace(source, load=load)


def _hold_out_validation(samples: _Kind, choice: Choice) -> dict[str, _Kind]:
    most = _MOST_VALIDATION / len(samples)

    def count(members: int) -> int:
        if members < _LEAST_FOR_VALIDATION:
            return 0
        share = choice.validation * members if choice.validation <= most else int(most * members)
        return min(max(1, round(share)), members - 1)

    return _parted(samples, VALIDATION, _chosen(samples, count, choice.seed))


def _chosen(samples: Samples, count: Callable[[int], int], seed: int) -> npt.NDArray[np.bool_]:
    """Mask of the samples to hold out: `count` says how many of a class of so many members."""
    mask = np.zeros(len(samples), dtype=bool)
    for members in _by_class(samples.labels):
        wanted = count(len(members))
        if wanted:
            mask[members] = held_out([samples.key(index) for index in members.tolist()], wanted, seed)
    return mask


def _by_class(labels: Labels) -> list[npt.NDArray[np.int64]]:
    """Positions of each class's samples, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(labels) else []


def _parted(samples: _Kind, split: str, mask: npt.NDArray[np.bool_]) -> dict[str, _Kind]:
    """The training samples, and those of the mask as another split if there are any."""
    if not mask.any():
        return {TRAIN: samples}
    return {TRAIN: samples.take(np.flatnonzero(~mask)), split: samples.take(np.flatnonzero(mask), split)}
