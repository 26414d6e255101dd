"""Image files in class folders: CLASS/*.jpg, or train/CLASS/*.jpg with a folder val/, validation/ or test/.

An unclear layout is refused; the error shows the expected one. Files that are left out are counted.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from infra.errors import UserError
from pipelines.data.prepare.source import SPLITS, TRAIN, Contents, Source
from pipelines.data.prepare.sources.place import IMAGE_SUFFIXES, Place, by_suffix, counted, left_out
from pipelines.data.prepare.sources.ranges import Ranges, fingerprint, whole_files
from pipelines.data.prepare.sources.splits import (
    SplitChoice,
    hold_out,
    listed,
    require_one_each,
    split_called,
    splits_in,
)

EXPECTS = "class folders (CLASS/*.jpg, or train/CLASS/*.jpg and val/CLASS/*.jpg)"

_MOST_NAMED = 3
_WNID = re.compile(r"n\d{8}")  # class folders of ImageNet, whose published results come from stored pixels


def open_folders(place: Place, choice: SplitChoice) -> Source | None:
    """Open class folders; None if there are no folders. The class names are the folders' names, sorted.

    Raises:
        UserError: the layout is unclear, a class folder is empty, or the training split lacks one.
    """
    if not place.folders:
        return None
    tree = _Tree(place)
    names = _split_folders(tree)
    classes = _class_folders(tree, names.get(TRAIN, ""))
    class_names = tuple(sorted(classes))
    splits = {TRAIN: _list_files(tree, class_names, classes, TRAIN)}
    folders = set(classes.values())
    for split, name in names.items():
        if split != TRAIN:
            own = _class_folders(tree, name)
            _require_known(tree, name, own, class_names, names[TRAIN])
            splits[split] = _list_files(tree, class_names, own, split)
            folders |= set(own.values())
    if len(splits) == 1:
        splits = hold_out(splits[TRAIN], choice)
        layout = f"{choice.holdout:g} of each class held out"
    else:
        layout = listed(f"{name}/" for name in names.values())
    notes = tuple(_notes(tree, folders))
    contents = Contents(class_names=class_names, splits=splits, fingerprint=fingerprint(splits), notes=notes)
    return Source(
        description=f"image files in class folders of {place.name} ({layout})",
        side=0,
        channels=3,
        pixels="stored" if all(map(_WNID.fullmatch, class_names)) else "displayed",
        load=lambda: contents,
    )


@dataclass(frozen=True)
class _Tree:
    """Indexes of the folders and images in a place."""

    place: Place

    @cached_property
    def _paths(self) -> list[str]:
        return list(self.place.files)

    @cached_property
    def _children(self) -> Mapping[str, list[str]]:
        names: dict[str, list[str]] = {}
        for path in self.place.folders:
            above, _, name = path.rpartition("/")
            names.setdefault(above, []).append(name)
        return names

    def folders(self, folder: str = "") -> list[str]:
        """Return the names of the folders directly in `folder`."""
        return self._children.get(folder, [])

    @cached_property
    def direct(self) -> Mapping[str, int]:
        """Return the number of images directly in a folder, by folder."""
        counts: dict[str, int] = {}
        for path in self._paths:
            if path.lower().endswith(IMAGE_SUFFIXES):
                folder = path.rpartition("/")[0]
                counts[folder] = counts.get(folder, 0) + 1
        return counts

    def below(self, folder: str) -> Sequence[str]:
        """Return the paths of all files below a folder, a slice of the sorted paths. "0" is the character after "/"."""
        return self._paths[bisect_left(self._paths, f"{folder}/") : bisect_left(self._paths, f"{folder}0")]

    def images(self, folder: str) -> list[str]:
        return [path for path in self.below(folder) if path.lower().endswith(IMAGE_SUFFIXES)]

    def at(self, folder: str) -> str:
        """Return the path of a folder as the user would write it."""
        return f"{self.place.text}/{folder}".rstrip("/")


def _split_folders(tree: _Tree) -> dict[str, str]:
    """Return the folder of each split; empty if the top folders are the classes.

    Raises:
        UserError: folders have the names of splits but not the layout of splits.
    """
    top = tree.folders()
    called = _called_splits(tree, top)
    structured = {name: split for name, split in called.items() if tree.folders(name)}
    flat = {name: split for name, split in called.items() if name not in structured}
    others = [name for name in top if name not in called and tree.images(name)]
    if not structured and others:
        _require_classes(tree, flat, others)
        return {}
    if flat:
        name = min(flat, key=lambda name: (SPLITS.index(flat[name]), name))
        found = counted(len(tree.images(name)), "image")
        raise UserError(
            f"{tree.at(name)} holds {found} but no class folders: expected {tree.at(name)}/CLASS/*.jpg "
            f"(images without labels cannot be used: move them out of {tree.place.text})"
        )
    if structured and TRAIN not in structured.values():
        name = min(structured)
        raise UserError(f"{tree.place.text} has {name}/ but no {TRAIN}/: name the folder of training images {TRAIN}")
    if len(structured) == 1 and others:
        raise UserError(
            f"{tree.place.text} has {min(structured)}/ with folders in it, but also images in {others[0]}/: "
            f"expected CLASS/*.jpg, or train/CLASS/*.jpg alone or with val/CLASS/*.jpg"
        )
    return require_one_each(((split, name) for name, split in structured.items()), tree.place.text)


def _called_splits(tree: _Tree, top: Sequence[str]) -> dict[str, str]:
    """Return the splits of the top folders whose name is a split, or has a split's word and only folders inside."""
    whole = {name: split for name in top if (split := split_called(name))}
    worded = {name: splits.pop() for name in top if name not in whole and len(splits := splits_in(name)) == 1}
    nested = {
        name: split
        for name, split in worded.items()
        if tree.folders(name) and not tree.direct.get(name) and tree.images(name)
    }
    return {**whole, **(nested if TRAIN in {*whole.values(), *nested.values()} else {})}


def _require_classes(tree: _Tree, flat: Mapping[str, str], others: Sequence[str]) -> None:
    """Raise UserError if it is unclear that the top folders are the classes.

    A class may be called train (like bus and car). But images in a flat test/ may be unlabelled, and folders that all
    hold the same folders may be splits, folds or sources.
    """
    unclear = sorted(name for name, split in flat.items() if split != TRAIN)
    if unclear:
        raise UserError(
            f"{tree.at(unclear[0])} is next to the class folder {others[0]}/: a test split needs class folders "
            f"({unclear[0]}/CLASS/*.jpg and {TRAIN}/CLASS/*.jpg), a class needs another name"
        )
    inner = [{name for name in tree.folders(other) if tree.images(f"{other}/{name}")} for other in others]
    if any(tree.direct.get(other) for other in others) or len(inner[0]) <= 1 or any(each != inner[0] for each in inner):
        return
    example = f"{others[0]}/{min(inner[0])}/"
    if len(others) == 1:
        raise UserError(
            f"{tree.place.text} holds a single folder with folders in it ({example}): name {tree.at(others[0])} instead"
        )
    raise UserError(
        f"the folders {listed(f'{other}/' for other in others[:_MOST_NAMED])} of {tree.place.text} all hold the same "
        f"folders ({example}): expected CLASS/*.jpg, or train/CLASS/*.jpg and val/CLASS/*.jpg"
    )


def _class_folders(tree: _Tree, folder: str) -> dict[str, str]:
    """Return the folder of each class by its name in composed Unicode (NFC). macOS writes decomposed names."""
    folders: dict[str, str] = {}
    for name in tree.folders(folder):
        path = f"{folder}/{name}" if folder else name
        other = folders.setdefault(unicodedata.normalize("NFC", name), path)
        if other != path:
            raise UserError(f"{tree.at(other)} is there twice, in two spellings of Unicode: merge the two folders")
    if not folders:
        raise UserError(f"{tree.at(folder)} has no class folders: expected {tree.at(folder)}/CLASS/*.jpg")
    return folders


def _require_known(
    tree: _Tree, folder: str, classes: Mapping[str, str], class_names: Sequence[str], train: str
) -> None:
    unknown = sorted(set(classes) - set(class_names))
    if unknown:
        near = difflib.get_close_matches(unknown[0], class_names, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"class folder {tree.at(classes[unknown[0]])} has no counterpart in {train}/{hint}")


def _list_files(tree: _Tree, class_names: Sequence[str], classes: Mapping[str, str], split: str) -> Ranges:
    files: list[tuple[str, int]] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        if name not in classes:  # a class without test images
            continue
        images = tree.images(classes[name])
        if not images:
            found = by_suffix(tree.below(classes[name]))
            raise UserError(
                f"class folder {tree.at(classes[name])} holds no images ({f'found {found}; ' if found else ''}"
                f"read are {', '.join(IMAGE_SUFFIXES)}): fill it or remove it"
            )
        files += [(path, tree.place.files[path]) for path in images]
        labels += [label] * len(images)
    return whole_files(tree.place.store, split, files, labels)


def _notes(tree: _Tree, folders: set[str]) -> Iterator[str]:
    """Yield notes on files that are left out: images outside the class folders, and other files."""
    depth = 1 + max(folder.count("/") for folder in folders)

    def is_read(path: str) -> bool:
        return path.lower().endswith(IMAGE_SUFFIXES) and "/".join(path.split("/")[:-1][:depth]) in folders

    rest = [path for path in tree.place.files if not is_read(path)]
    images = [path for path in rest if path.lower().endswith(IMAGE_SUFFIXES)]
    if images:
        shown = ", ".join(images[:_MOST_NAMED]) + (", …" if len(images) > _MOST_NAMED else "")
        yield f"left out: {counted(len(images), 'image')} in no class folder ({shown})"
    yield from left_out(path for path in rest if not path.lower().endswith(IMAGE_SUFFIXES))
