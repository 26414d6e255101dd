"""CIFAR-10 and CIFAR-100 in their binary version (Krizhevsky 2009), from the .tar.gz archive or its unpacked folder.

Each row of a file has the label (CIFAR-100: coarse label, fine label), then 3,072 bytes: 32x32 red, green, blue.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from infra.errors import UserError
from pipelines.data.prepare.source import TEST, TRAIN, Source
from pipelines.data.prepare.sources.arrays import Arrays, arrays_source
from pipelines.data.prepare.sources.place import Place
from pipelines.data.prepare.sources.splits import SplitChoice
from pipelines.data.prepare.sources.tar import list_members

EXPECTS = "CIFAR's binary version (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz, or their *.bin files)"

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_MOST_BYTES = 512 << 20  # limit of an unpacked archive; the real ones have 185 MB

Read = Callable[[str], bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Variant:
    name: str
    archive: str
    folder: str  # folder in the archive
    pickled: tuple[str, ...]  # names of the Python version of the same data
    splits: dict[str, tuple[str, ...]]  # files by split
    names: str  # file of the class names
    label_bytes: int  # bytes of the labels; the last one is used

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.splits[TRAIN], *self.splits[TEST], self.names)


_VARIANTS = (
    _Variant(
        name="CIFAR-10",
        archive="cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        pickled=("cifar-10-python.tar.gz", "cifar-10-batches-py"),
        splits={TRAIN: tuple(f"data_batch_{number}.bin" for number in range(1, 6)), TEST: ("test_batch.bin",)},
        names="batches.meta.txt",
        label_bytes=1,
    ),
    _Variant(
        name="CIFAR-100",
        archive="cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        pickled=("cifar-100-python.tar.gz", "cifar-100-python"),
        splits={TRAIN: ("train.bin",), TEST: ("test.bin",)},
        names="fine_label_names.txt",
        label_bytes=2,
    ),
)


def open_cifar(place: Place, choice: SplitChoice) -> Source | None:
    """Open the archive of one variant, or its files in SOURCE or in their usual folder there; None if there are none.

    Raises:
        UserError: a file is missing or has a wrong length, a label is out of range, or the files are the pickled
            version.
    """
    for variant in _VARIANTS:
        if variant.archive in place.files:
            data = place.read(variant.archive, most=_MOST_BYTES)
            return _open(variant, place, *_members(data, f"{place.text}/{variant.archive}"))
        folders = ("", f"{variant.folder}/")
        loose = {name: folder + name for folder in folders for name in variant.files if folder + name in place.files}
        if set(loose) & {*variant.splits[TRAIN], *variant.splits[TEST]}:
            return _open(variant, place, set(loose), _reader(place, loose))
        for name in (*place.files, *place.folders):
            if PurePosixPath(name).name in variant.pickled:
                raise UserError(f"{place.text}/{name} is pickled and not opened: take {variant.archive} instead")
    return None


def _reader(place: Place, paths: dict[str, str]) -> Read:
    return lambda name: place.read(paths[name], most=_MOST_BYTES)


def _members(data: bytes, where: str) -> tuple[set[str], Read]:
    """Return the names of an archive's files, without their folder, and a function that reads one."""
    members = {PurePosixPath(member.name).name: member for member in list_members(io.BytesIO(data), len(data), where)}

    def read(name: str) -> bytes:
        member = members[name]
        return data[member.start : member.start + member.size]

    return set(members), read


def _open(variant: _Variant, place: Place, present: set[str], read: Read) -> Source:
    missing = [name for name in variant.files if name not in present]
    if missing:
        raise UserError(f"{place.text} has files of {variant.name} but no {missing[0]}")
    digest = hashlib.sha256()
    class_names = tuple(read(variant.names).decode(errors="replace").split())
    splits = {}
    for split, names in variant.splits.items():
        parts = [_parsed(variant, name, read(name), digest, f"{place.text}/{name}") for name in names]
        labels = np.concatenate([part[0] for part in parts])
        if labels.max() >= len(class_names):
            row, last = int(np.argmax(labels >= len(class_names))), len(class_names) - 1
            raise UserError(f"{place.text}: label {labels[row]} of {split} sample {row} is outside 0..{last}")
        keys = tuple(
            f"{name}/{row:05d}" for name, part in zip(names, parts, strict=True) for row in range(len(part[0]))
        )
        images = np.concatenate([part[1] for part in parts])
        splits[split] = Arrays(split=split, images=images, labels=labels, keys=keys)
    return arrays_source(f"{variant.name}, binary version", class_names, splits, digest)


def _parsed(
    variant: _Variant, name: str, data: bytes, digest: hashlib._Hash, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Parse a file: (labels int32 [n], images uint8 [n,32,32,3])."""
    width = variant.label_bytes + _PIXELS
    if not data or len(data) % width:
        raise UserError(f"{where} has {len(data):,} bytes, expected a multiple of {width:,} (one image and its labels)")
    digest.update(name.encode() + data)
    table = np.frombuffer(data, dtype=np.uint8).reshape(-1, width)
    images = table[:, variant.label_bytes :].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return table[:, variant.label_bytes - 1].astype(np.int32), np.ascontiguousarray(images)
