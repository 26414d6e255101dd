"""Image files in class folders: CLASS/*.jpg, or train/CLASS/*.jpg with val/, validation/ or test/ beside it."""

from __future__ import annotations

from bisect import bisect_left

from infra.errors import UserError
from pipelines.data.samples import TRAIN, Contents, Source
from pipelines.data.sources.place import IMAGE_SUFFIXES, Place
from pipelines.data.sources.ranges import Ranges, fingerprint, whole_files
from pipelines.data.sources.splits import HELD_OUT_NAMES, Choice, hold_out, listed, names_by_split

EXPECTS = "class folders (CLASS/*.jpg, or train/CLASS/*.jpg and val/CLASS/*.jpg)"


def open_folders(place: Place, choice: Choice) -> Source | None:
    """Class folders; the class names are the folders' names, sorted. None where there are no folders.

    Raises:
        UserError: an empty class folder, or one that is only in the test split.
    """
    if not place.folders:
        return None
    names = _split_folders(place)
    prefix = f"{names[TRAIN]}/" if names else ""
    class_names = tuple(place.subfolders(prefix.rstrip("/")))
    if not class_names:
        raise UserError(f"{_at(place, prefix)} has no class folders: expected {_at(place, prefix)}/CLASS/*.jpg")
    train = _list_files(place, prefix, class_names, TRAIN)
    held_out = {split: name for split, name in names.items() if split != TRAIN}
    if held_out:
        splits = {TRAIN: train}
        for split, name in held_out.items():
            _require_known(place, name, class_names)
            splits[split] = _list_files(place, f"{name}/", class_names, split)
    else:
        splits = hold_out(train, choice)
    layout = listed(f"{name}/" for name in names.values()) if held_out else f"{choice.holdout:g} of each class held out"
    contents = Contents(class_names=class_names, splits=splits, fingerprint=fingerprint(splits))
    return Source(
        description=f"image files in class folders of {place.name} ({layout})",
        side=0,
        channels=3,
        load=lambda: contents,
    )


def _at(place: Place, prefix: str) -> str:
    return f"{place.text}/{prefix}".rstrip("/")


def _split_folders(place: Place) -> dict[str, str]:
    """Folders by split: those named like one that hold class folders; empty where there is none for training."""
    below = place.subfolders()
    others = [name for name in HELD_OUT_NAMES if name in below]
    if others and TRAIN not in below:
        raise UserError(f"{place.text} has {others[0]}/ but no {TRAIN}/: name the folder of training images {TRAIN}")
    names = [TRAIN] if TRAIN in below else []
    return names_by_split([*names, *(name for name in others if place.subfolders(name))], place.text)


def _require_known(place: Place, folder: str, class_names: tuple[str, ...]) -> None:
    unknown = sorted(set(place.subfolders(folder)) - set(class_names))
    if unknown:
        raise UserError(f"class folder {place.text}/{folder}/{unknown[0]} has no counterpart in {TRAIN}/")


def _list_files(place: Place, prefix: str, class_names: tuple[str, ...], split: str) -> Ranges:
    paths = list(place.files)
    present = set(place.subfolders(prefix.rstrip("/")))
    files: list[tuple[str, int]] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        if name not in present:  # only in a test split: a class without test images
            continue
        folder = f"{prefix}{name}"
        # Sorted paths: those of a folder lie together. "0" is the character after "/".
        inside = paths[bisect_left(paths, f"{folder}/") : bisect_left(paths, f"{folder}0")]
        images = [path for path in inside if path.lower().endswith(IMAGE_SUFFIXES)]
        if not images:
            told = ", ".join(IMAGE_SUFFIXES)
            raise UserError(f"class folder {place.text}/{folder} holds no images ({told}): fill it or remove it")
        files += [(path, place.files[path]) for path in images]
        labels += [label] * len(images)
    return whole_files(place.store, split, files, labels)
