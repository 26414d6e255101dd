"""ImageNet's development kit (ILSVRC2012_devkit_t12.tar.gz): the classes and the labels of the validation images."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from pipelines.data.prepare.sources.tar import list_members

_META, _TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
_MOST_BYTES = 64 << 20  # limit of a member


@dataclass(frozen=True, kw_only=True, slots=True)
class Devkit:
    """The contents of the kit. Classes are in the order of their WNIDs, as in torchvision and Keras."""

    wnids: tuple[str, ...]
    names: tuple[str, ...]  # "tench, Tinca tinca"
    validation: npt.NDArray[np.int32]  # class index of validation image 1, 2, …

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return names such as "n01440764 tench, Tinca tinca".

        The WNID is needed: two classes are called crane, and two maillot.
        """
        return tuple(f"{wnid} {name}" for wnid, name in zip(self.wnids, self.names, strict=True))


def read_devkit(data: bytes, where: str) -> Devkit:
    """Parse the uncompressed tar.

    Raises:
        UserError: a file is missing or has unexpected content.
    """
    found = {}
    for member in list_members(io.BytesIO(data), len(data), where):
        for name in (_META, _TRUTH):
            if member.name.endswith(name) and member.size <= _MOST_BYTES:
                found[name] = data[member.start : member.start + member.size]
    for name in (_META, _TRUTH):
        if name not in found:
            raise UserError(f"{where} holds no {name}: use the original archive, without changes")
    classes = _classes(found[_META], f"{where}/{_META}")
    wnids = tuple(sorted(wnid for wnid, _ in classes.values()))
    names = dict(classes.values())
    index = {number: wnids.index(wnid) for number, (wnid, _) in classes.items()}
    try:
        validation = [index[int(line)] for line in found[_TRUTH].split()]
    except (ValueError, KeyError) as error:
        raise UserError(f"{where}/{_TRUTH}: {error} is not a class number") from error
    return Devkit(
        wnids=wnids, names=tuple(names[wnid] for wnid in wnids), validation=np.array(validation, dtype=np.int32)
    )


def _classes(data: bytes, where: str) -> dict[int, tuple[str, str]]:
    """Return (WNID, words) by ILSVRC2012_ID, for the synsets without children. The others are their hypernyms."""
    import scipy.io

    try:
        synsets = np.atleast_1d(scipy.io.loadmat(io.BytesIO(data), squeeze_me=True)["synsets"])
        classes = {
            int(synset["ILSVRC2012_ID"]): (str(synset["WNID"]), str(synset["words"]))
            for synset in synsets
            if int(synset["num_children"]) == 0
        }
    except Exception as error:  # scipy raises any exception on hostile bytes
        raise UserError(f"{where} is not ImageNet's table of synsets: {type(error).__name__}: {error}") from error
    if not classes or len({wnid for wnid, _ in classes.values()}) != len(classes):
        raise UserError(f"{where} names no classes, or a class twice")
    return classes
