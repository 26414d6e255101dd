"""WebDataset tars: the files of a sample share a key and are adjacent: KEY.jpg with KEY.cls or KEY.json."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import PurePosixPath
from typing import cast

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from pipelines.data.prepare.source import TRAIN, Contents, Source
from pipelines.data.prepare.sources.index import IndexBuilder, joined, kept_contents
from pipelines.data.prepare.sources.names import Names
from pipelines.data.prepare.sources.place import IMAGE_SUFFIXES, Place, left_out
from pipelines.data.prepare.sources.ranged_file import RangedFile
from pipelines.data.prepare.sources.ranges import Ranges, fingerprint
from pipelines.data.prepare.sources.splits import SplitChoice, assign, hold_out
from pipelines.data.prepare.sources.tar import Member, open_tar, stored_members

EXPECTS = "WebDataset tars (train-*.tar and val-*.tar, or train/*.tar; KEY.jpg with KEY.cls or KEY.json)"
CLASS_FILES = ("classnames.txt", "classes.txt")  # one name per line, in the order of the labels

_LABELS = ("cls", "json")
_NO_LABEL = object()
_MOST_LABEL_BYTES = 1 << 20
_MOST_CLASSES = 100_000
_THREADS = 16


def open_webdataset(place: Place, choice: SplitChoice) -> Source | None:
    """Open the tars below SOURCE; None if there are none.

    Raises:
        UserError: the names of the files do not show their splits. At the first access to the contents: a tar is
            damaged or has unexpected members.
    """
    compressed = place.ending(".tar.gz", ".tgz", ".tar.zst", ".tar.xz")
    tars = place.ending(".tar")
    if not tars:
        if compressed and not place.folders:
            raise UserError(
                f"{place.text}/{compressed[0]} is compressed, which is not supported: decompress it to .tar"
            )
        return None
    names = [name for name in CLASS_FILES if name in place.files]
    splits = assign(tars, place.text)
    listing = place.listing([*tars, *names])

    def load() -> Contents:
        found = kept_contents(choice.keep, listing, place.store, lambda: _index(place, splits.files))
        ranges = cast("dict[str, Ranges]", found.splits)
        parts = ranges if splits.has_test else hold_out(ranges[TRAIN], choice)
        return replace(found, splits=parts, notes=left_out(place.besides([*tars, *names])))

    return Source(
        description=f"WebDataset tars of {place.name} ({splits.layout(choice.holdout)})",
        side=0,
        channels=3,
        listing=listing,
        load=load,
    )


def _index(place: Place, tars: Mapping[str, tuple[str, ...]]) -> Contents:
    splits = {split: _index_split(place, split, paths) for split, paths in tars.items()}
    class_names = _class_names(place, splits)
    labels = [ranges.labels.tobytes() for ranges in splits.values()]
    digest = fingerprint(splits, "\n".join(class_names).encode(), *labels)
    return Contents(class_names=class_names, splits=splits, fingerprint=digest)


def _index_split(place: Place, split: str, paths: tuple[str, ...]) -> Ranges:
    objects = Names.of(paths)

    def index_tar(number: int) -> Ranges:
        where = place.text if place.is_file else f"{place.text}/{paths[number]}"
        file = open_tar(place.store, paths[number], length=place.files[paths[number]])
        index, hashes = IndexBuilder(), array("q")
        stem = paths[number].removesuffix(".tar")
        for image, label, key in _samples(stored_members(place.store, file, where), file, where):
            index.add(number, image.start, image.size, label, f"{stem}/{key}")
            hashes.append(hash(key))
        ranges = index.ranges(place.store, split, objects)
        _require_distinct(np.frombuffer(hashes, dtype=np.int64), ranges.keys, where)
        return ranges

    with ThreadPoolExecutor(_THREADS if place.store.is_remote else 1) as pool:
        ranges = joined(list(pool.map(index_tar, range(len(paths)))))
    if not len(ranges):
        raise UserError(f"{place.text}: the tars of {split} hold no images")
    return ranges


@dataclass(kw_only=True, slots=True)
class _Sample:
    """The files of one key that were read so far."""

    key: str
    image: Member | None = None
    labels: dict[str, int | UserError] = field(default_factory=dict)  # by extension: the class number, or the error
    seen: set[str] = field(default_factory=set)  # extensions

    def settle(self, where: str) -> int:
        """Return the label of the .cls file, or else of the .json file. The order of the files does not matter.

        Returns:
            The class number; -1 if there is no label.

        Raises:
            UserError: the label is not a class number, or the two files name different classes.
        """
        label = self.labels.get("cls", self.labels.get("json", -1))
        if isinstance(label, UserError):
            raise label
        other = self.labels.get("json", -1)
        if isinstance(other, int) and -1 < other != label:
            raise UserError(f"{where}: sample {self.key!r} is of class {label} by its .cls and of {other} by its .json")
        return label


def _samples(members: Iterator[Member], file: RangedFile, where: str) -> Iterator[tuple[Member, int, str]]:
    """Yield (image, label, key) for the samples of one tar."""
    for key, group in groupby(((_split(member.name), member) for member in members), key=lambda each: each[0][0]):
        sample = _Sample(key=key)
        for (_, extension), member in group:
            _add(sample, extension, member, file, where)
        label = sample.settle(where)
        if sample.image is None and label < 0:
            continue  # such as a README
        if sample.image is None or label < 0:
            what = "image" if sample.image is None else f"label ({' or '.join(f'.{name}' for name in _LABELS)})"
            found = ", ".join(f".{extension}" for extension in sorted(sample.seen))
            raise UserError(
                f"{where}: sample {key!r} has no {what}, only {found}: the files of a sample must follow each other"
            )
        yield sample.image, label, key


def _add(sample: _Sample, extension: str, member: Member, file: RangedFile, where: str) -> None:
    if extension in sample.seen:
        raise UserError(f"{where}: member {member.name!r} is there twice")
    sample.seen.add(extension)
    if f".{extension}".endswith(IMAGE_SUFFIXES):
        if sample.image is not None:
            raise UserError(f"{where}: member {member.name!r} is a second image of sample {sample.key!r}")
        sample.image = member
    elif extension in _LABELS:
        try:
            sample.labels[extension] = _read_label(extension, member, file, where)
        except UserError as error:  # a .json that comes with a .cls may hold anything
            sample.labels[extension] = error


def _split(name: str) -> tuple[str, str]:
    """Split a path into (key, extension) at the first dot of the file's name, as WebDataset does."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _read_label(extension: str, member: Member, file: RangedFile, where: str) -> int:
    if member.size > _MOST_LABEL_BYTES:
        raise UserError(f"{where}: member {member.name!r} has {member.size:,} bytes, too many for a label")
    file.seek(member.start)
    data = file.read(member.size)
    try:
        label = json.loads(data).get("label", _NO_LABEL) if extension == "json" else int(data)
    except (ValueError, AttributeError, RecursionError):
        label = data[:40]
    if label is _NO_LABEL:  # the .json may hold only a description of the image
        return -1
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < _MOST_CLASSES:
        raise UserError(f"{where}: member {member.name!r} holds {label!r}, which is not a class number (0, 1, …)")
    return label


def _require_distinct(hashes: npt.NDArray[np.int64], keys: Names, where: str) -> None:
    """Refuse a key that two samples share. Hashes take 8 bytes per key; a set of keys would take 100."""
    order = np.argsort(hashes, kind="stable")
    for place in np.flatnonzero(np.diff(hashes[order]) == 0).tolist():
        key = keys[int(order[place])]
        if key == keys[int(order[place + 1])]:
            raise UserError(f"{where}: key {PurePosixPath(key).name!r} belongs to two samples: keys must be unique")


def _class_names(place: Place, splits: dict[str, Ranges]) -> tuple[str, ...]:
    most = max(int(ranges.labels.max()) for ranges in splits.values())
    for name in CLASS_FILES:
        if name in place.files:
            lines = place.read(name, most=_MOST_LABEL_BYTES * 16).decode(errors="replace").splitlines()
            class_names = tuple(filter(None, map(str.strip, lines)))
            if most >= len(class_names):
                raise UserError(f"{place.text}/{name} names {len(class_names):,} classes, and a label is {most}")
            return class_names
    return tuple(map(str, range(most + 1)))
