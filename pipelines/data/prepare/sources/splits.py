"""Splits of a source: assign files to splits by name, and hold out images for the splits that the source lacks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from pipelines.config.prepare import PrepareConfig
from pipelines.data.prepare.source import SPLITS, TEST, TRAIN, VALIDATION, Contents, Labels, Samples, Source, held_out

if TYPE_CHECKING:
    from infra.storage import Store

_WORDS = {
    **dict.fromkeys(("train", "training", "trainset", "trn"), TRAIN),
    **dict.fromkeys(("val", "vali", "valid", "validation", "valset", "eval", "evaluation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "testset"), TEST),
}
"""Words that sources use for their splits; upper and lower case do not matter."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # "imagenet1k-train", "imagenetTrain"
_WHOLE = re.compile(r"([a-z]+?)[ _-]?(?:set|split|data|dataset|images?|imgs?|[0-9]+)?", re.IGNORECASE)
MOST_VALIDATION = 10_000  # images; more make an evaluation slower but hardly more precise
_LEAST_FOR_VALIDATION = 3  # training images of a class, so that at least two remain

_Kind = TypeVar("_Kind", bound=Samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitChoice:
    """Settings of the user for the splits of a source."""

    holdout: float  # fraction of each class that becomes the test split, if the source has none
    validation: float  # fraction of each class's training images for the validation split, if the source has none
    seed: int  # decides which samples are held out
    keep: Store | None = None  # store for the index of archives until the data set is finished
    table: PrepareConfig = field(default_factory=PrepareConfig)  # columns and root, if the source is a table


@dataclass(frozen=True, kw_only=True, slots=True)
class Assigned:
    """The files of a source by split."""

    files: Mapping[str, tuple[str, ...]]
    names: Mapping[str, str]  # the source's own names of its splits; empty if it has none

    @property
    def has_test(self) -> bool:
        return TEST in self.files

    def layout(self, holdout: float) -> str:
        """Describe the splits, for `Source.description`."""
        return listed(self.names.values()) if self.has_test else f"{holdout:g} of each class held out"

    def without(self, split: str) -> Assigned:
        """Return the same assignment without one split."""
        rest = require_one_each(((each, name) for each, name in self.names.items() if each != split), "")
        files = {name: self.files[each] for each, name in self.names.items()}
        return Assigned(files={each: files[name] for each, name in rest.items()}, names=rest)


def listed(names: Iterable[str]) -> str:
    """Join names as in "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def split_called(name: str) -> str:
    """Return the split that a folder's whole name means, as in train, Testing, test_set, val2017; empty if none."""
    match = _WHOLE.fullmatch(name)
    return _WORDS.get(name.lower(), _WORDS.get(match[1].lower(), "") if match else "")


def splits_in(name: str) -> set[str]:
    """Return the splits that occur as words in a name, as in imagenet-train-0001. Names of classes rarely have one."""
    return {_WORDS[word.lower()] for word in _WORD.findall(name) if word.lower() in _WORDS}


def require_one_each(found: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    """Return the source's name of each split, in the order of `SPLITS`. A single held-out split is the test split.

    Args:
        found: pairs (split, name).
        where: the source, for messages.

    Raises:
        UserError: two names mean the same split.
    """
    names: dict[str, str] = {}
    for split, name in found:
        if names.setdefault(split, name) != name:
            raise UserError(f"{where} has both {names[split]} and {name}, and both mean the {split} split: keep one")
    if TEST not in names and VALIDATION in names:
        names[TEST] = names.pop(VALIDATION)
    return {split: names[split] for split in SPLITS if split in names}


def assign(paths: Iterable[str], where: str) -> Assigned:
    """Assign files to splits by a word in the file's name, or else in the name of the nearest folder that has one.

    Raises:
        UserError: only some files name a split, none of them names the training split, or a name has two splits.
    """
    named: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        named.setdefault(_split_word(path, where), []).append(path)
    unnamed = named.pop(("", ""), [])
    if not named:
        _require_no_glued_words(unnamed, where)
        return Assigned(files={TRAIN: tuple(unnamed)}, names={})
    if unnamed:
        raise UserError(f"{where}/{unnamed[0]} does not say its split: begin its name with {TRAIN} or val")
    names = require_one_each(named, where)
    if TRAIN not in names:
        raise UserError(f"{where} has {next(iter(named.values()))[0]} but no file whose name says {TRAIN}")
    files = {
        split: tuple(path for (_, word), of in named.items() if word == name for path in of)
        for split, name in names.items()
    }
    return Assigned(files=files, names=names)


def _split_word(path: str, where: str) -> tuple[str, str]:
    """Return (split, the word that names it, in lower case); two empty strings if no name in the path has one."""
    for part in reversed(PurePosixPath(path).parts):
        words = {word.lower() for word in _WORD.findall(part) if word.lower() in _WORDS}
        if len({_WORDS[word] for word in words}) > 1:
            raise UserError(f"{where}/{path} names more than one split ({', '.join(sorted(words))}): rename it")
        if words:
            word = min(words)
            return _WORDS[word], word
    return "", ""


def _require_no_glued_words(paths: list[str], where: str) -> None:
    """Refuse names such as imagenettrain.tar and imagenetval.tar: only some contain "train", and not as a word."""
    glued = [
        path
        for path in paths
        if any(
            word.lower().startswith(TRAIN) or word.lower().endswith(TRAIN)
            for word in _WORD.findall(PurePosixPath(path).name)
        )
    ]
    if glued and len(glued) < len(paths):
        other = next(path for path in paths if path not in set(glued))
        raise UserError(
            f"{where}/{glued[0]} and {other} do not say their splits: begin their names with {TRAIN}- and val-"
        )


def hold_out(samples: _Kind, choice: SplitChoice) -> dict[str, _Kind]:
    """Split off the fraction `holdout` of each class as the test split: at least one sample per class that has two."""

    def count(members: int) -> int:
        return min(max(1, round(choice.holdout * members)), members - 1) if choice.holdout else 0

    return parted(samples, TEST, _chosen(samples, count, choice.seed))


def with_validation(source: Source, choice: SplitChoice) -> Source:
    """Return the source with a validation split taken from its training images, unless it already has one."""

    def load() -> Contents:
        contents = source.load()
        if VALIDATION in contents.splits or not choice.validation:
            return contents
        parts = {**contents.splits, **_hold_out_validation(contents.splits[TRAIN], choice)}
        return replace(contents, splits={split: parts[split] for split in SPLITS if split in parts})

    return replace(source, load=load)


def _hold_out_validation(samples: _Kind, choice: SplitChoice) -> dict[str, _Kind]:
    most = MOST_VALIDATION / len(samples)

    def count(members: int) -> int:
        if members < _LEAST_FOR_VALIDATION:
            return 0
        wanted = choice.validation * members if choice.validation <= most else int(most * members)
        return min(max(1, round(wanted)), members - 1)

    return parted(samples, VALIDATION, _chosen(samples, count, choice.seed))


def _chosen(samples: Samples, count: Callable[[int], int], seed: int) -> npt.NDArray[np.bool_]:
    """Return a mask of the samples to hold out. `count` returns the number to hold out for a class size."""
    mask = np.zeros(len(samples), dtype=bool)
    for members in _by_class(samples.labels):
        wanted = count(len(members))
        if wanted:
            mask[members] = held_out([samples.key(index) for index in members.tolist()], wanted, seed)
    return mask


def _by_class(labels: Labels) -> list[npt.NDArray[np.int64]]:
    """Return the positions of each class's samples, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(labels) else []


def parted(samples: _Kind, split: str, mask: npt.NDArray[np.bool_]) -> dict[str, _Kind]:
    """Split the training samples: those in the mask, if any, become split `split`."""
    if not mask.any():
        return {TRAIN: samples}
    return {TRAIN: samples.take(np.flatnonzero(~mask)), split: samples.take(np.flatnonzero(mask), split)}
