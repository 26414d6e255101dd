"""Which files are for training and which for testing, and what is held out where there is no test split."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from infra.errors import UserError
from pipelines.data.samples import TEST, TRAIN, Samples, held_out

if TYPE_CHECKING:
    from infra.storage import Store

TEST_NAMES = ("val", "valid", "validation", "test")  # the first that is there becomes the test split
_NAMED = re.compile(rf"({TRAIN}|{'|'.join(TEST_NAMES)})(?![a-z])", re.IGNORECASE)

_Kind = TypeVar("_Kind", bound=Samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What the user decides about a source."""

    holdout: float  # share of each class that becomes the test split where the source has none
    seed: int  # decides which samples are held out
    keep: Store | None = None  # where the index of archives is kept until the data set is finished


@dataclass(frozen=True, kw_only=True, slots=True)
class Assigned:
    """Files by split."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    test_name: str  # what the source calls its test split; empty = it has none

    def layout(self, holdout: float) -> str:
        """For descriptions."""
        return f"{TRAIN} and {self.test_name}" if self.test else f"{holdout:g} of each class held out"

    def each(self) -> dict[str, tuple[str, ...]]:
        """Files of the splits that there are."""
        return {TRAIN: self.train} | ({TEST: self.test} if self.test else {})


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
        return Assigned(train=tuple(unnamed), test=(), test_name="")
    if unnamed:
        raise UserError(f"{where}/{unnamed[0]} does not say its split: begin its name with {TRAIN} or {TEST_NAMES[0]}")
    if TRAIN not in named:
        raise UserError(f"{where} has {named.popitem()[1][0]} but no file whose name begins with {TRAIN}")
    test_name = next((name for name in TEST_NAMES if name in named), "")
    return Assigned(train=tuple(named[TRAIN]), test=tuple(named.get(test_name, ())), test_name=test_name)


def _split_name(path: str) -> str:
    """The split that the nearest folder or the file's name says; empty where none does."""
    parts = PurePosixPath(path)
    if match := _NAMED.match(parts.name):
        return match[1].lower()
    folders = [folder.lower() for folder in parts.parts[:-1]]
    return next((name for name in reversed(folders) if name in (TRAIN, *TEST_NAMES)), "")


def hold_out(samples: _Kind, choice: Choice) -> dict[str, _Kind]:
    """Split off the share `holdout` of each class, at least one sample of every class that has two."""
    mask = np.zeros(len(samples), dtype=bool)
    for label in np.unique(samples.labels) if choice.holdout else ():
        members = np.flatnonzero(samples.labels == label)
        count = min(max(1, round(choice.holdout * len(members))), len(members) - 1)
        mask[members] = held_out([samples.key(index) for index in members.tolist()], count, choice.seed)
    if not mask.any():
        return {TRAIN: samples}
    return {TRAIN: samples.take(np.flatnonzero(~mask)), TEST: samples.take(np.flatnonzero(mask), TEST)}
