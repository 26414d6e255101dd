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

_WORDS = {
    **dict.fromkeys(("train", "training", "trainset", "trn"), TRAIN),
    **dict.fromkeys(("val", "vali", "valid", "validation", "valset", "eval", "evaluation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "testset"), TEST),
}
"""What sources call their splits, in any case."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # "imagenet1k-train", "imagenetTrain"
_WHOLE = re.compile(r"([a-z]+?)[ _-]?(?:set|split|data|dataset|images?|imgs?|[0-9]+)?", re.IGNORECASE)
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
    names: Mapping[str, str]  # what the source calls its splits; empty where it names none

    @property
    def has_test(self) -> bool:
        return TEST in self.files

    def layout(self, holdout: float) -> str:
        """For descriptions."""
        return listed(self.names.values()) if self.has_test else f"{holdout:g} of each class held out"

    def without(self, split: str) -> Assigned:
        """The same without one split."""
        rest = require_one_each(((each, name) for each, name in self.names.items() if each != split), "")
        files = {name: self.files[each] for each, name in self.names.items()}
        return Assigned(files={each: files[name] for each, name in rest.items()}, names=rest)


def listed(names: Iterable[str]) -> str:
    """ "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def split_called(name: str) -> str:
    """The split that a folder is called after, as a whole: train, Testing, test_set, val2017; empty where it is not."""
    match = _WHOLE.fullmatch(name)
    return _WORDS.get(name.lower(), _WORDS.get(match[1].lower(), "") if match else "")


def splits_in(name: str) -> set[str]:
    """The splits that the words of a name say: imagenet-train-0001 says one, a class's name hardly ever does."""
    return {_WORDS[word.lower()] for word in _WORD.findall(name) if word.lower() in _WORDS}


def require_one_each(found: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    """What the source calls each of its splits, in the order of `SPLITS`. A single held-out split is the test split.

    Args:
        found: (split, name).
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
    """Sort files into splits by a word in the name of the file, or else of the nearest folder that has one.

    Raises:
        UserError: some files say their split and none is for training, or some say nothing beside others that do, or
            a name says two splits.
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
    """(split, the word that says it, in lower case); empty where neither the file nor a folder says one."""
    for part in reversed(PurePosixPath(path).parts):
        words = {word.lower() for word in _WORD.findall(part) if word.lower() in _WORDS}
        if len({_WORDS[word] for word in words}) > 1:
            raise UserError(f"{where}/{path} names more than one split ({', '.join(sorted(words))}): rename it")
        if words:
            word = min(words)
            return _WORDS[word], word
    return "", ""


def _require_no_glued_words(paths: list[str], where: str) -> None:
    """Refuse imagenettrain.tar beside imagenetval.tar: no word says a split, yet only some are for training."""
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
