"""Image files in class folders: CLASS/*.jpg, or train/CLASS/*.jpg with val/, validation/ or test/ beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from pipelines.data.samples import TEST, TRAIN, Positions, Source, SourceSample, held_out

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
TEST_FOLDERS = ("val", "validation", "test")  # the first that holds class folders


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """Image files of one split, sorted by class and path; read where the root is visible."""

    root: str
    split: str
    paths: list[str]  # relative to the root, "/" between parts; also the samples' keys
    labels: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int64]  # bytes

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def mean_bytes(self) -> float:
        return float(self.sizes.mean())

    def take(self, positions: Positions, split: str = "") -> Files:
        """The files at these positions, in this order; of another split if one is named."""
        return Files(
            root=self.root,
            split=split or self.split,
            paths=[self.paths[position] for position in positions],
            labels=self.labels[positions],
            sizes=self.sizes[positions],
        )

    def read(self) -> Iterator[SourceSample]:
        for path, label in zip(self.paths, self.labels, strict=True):
            try:
                data = Path(self.root, path).read_bytes()
            except OSError as error:
                raise UserError(f"{self.root}/{path} cannot be read: {error.strerror}") from error
            yield SourceSample(image=data, label=int(label), key=path, split=self.split)


def open_folder(root: Path, *, holdout: float, seed: int) -> Source:
    """List class folders; the class names are the folders' names, sorted.

    Raises:
        UserError: no class folders, an empty one, one that is only in the test split, or an unreadable one.
    """
    has_splits = (root / TRAIN).is_dir()
    train_root = root / TRAIN if has_splits else root
    test_root = _test_folder(root, has_splits)
    class_names = _class_folders(train_root)
    train = _list_files(root, train_root, class_names, TRAIN)
    if test_root is not None:
        _require_known(test_root, class_names)
        splits = {TRAIN: train, TEST: _list_files(root, test_root, class_names, TEST)}
    else:
        splits = _hold_out(train, holdout, seed)
    layout = f"{TRAIN}/ and {test_root.name}/" if test_root else f"{holdout:g} of each class held out"
    return Source(
        description=f"image files in class folders of {root.resolve().name} ({layout})",
        fingerprint=_fingerprint(splits),
        class_names=class_names,
        splits=splits,
        side=0,
        channels=3,
    )


def _test_folder(root: Path, has_splits: bool) -> Path | None:
    candidates = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    if candidates and not has_splits:
        raise UserError(f"{root} has {candidates[0].name}/ but no {TRAIN}/: name the folder of training images {TRAIN}")
    return next((folder for folder in candidates if _subfolders(folder)), None)


def _subfolders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = tuple(_subfolders(folder))
    if not names:
        raise UserError(f"{folder} has no class folders: expected {folder}/CLASS/*.jpg, IDX files, or the word mnist5k")
    return names


def _require_known(folder: Path, class_names: tuple[str, ...]) -> None:
    unknown = sorted(set(_subfolders(folder)) - set(class_names))
    if unknown:
        raise UserError(f"class folder {folder / unknown[0]} has no counterpart in {TRAIN}/")


def _list_files(root: Path, split_root: Path, class_names: tuple[str, ...], split: str) -> Files:
    paths: list[str] = []
    labels: list[int] = []
    sizes: list[int] = []
    for label, name in enumerate(class_names):
        folder = split_root / name
        if not folder.is_dir():  # only in a test split: a class without test images
            continue
        found = sorted(_images_below(folder))
        if not found:
            raise UserError(f"class folder {folder} holds no images ({', '.join(SUFFIXES)}): fill it or remove it")
        paths += [os.path.relpath(path, root).replace(os.sep, "/") for path, _ in found]
        sizes += [size for _, size in found]
        labels += [label] * len(found)
    return Files(
        root=str(root.resolve()),
        split=split,
        paths=paths,
        labels=np.array(labels, dtype=np.int32),
        sizes=np.array(sizes, dtype=np.int64),
    )


def _images_below(folder: Path) -> Iterator[tuple[str, int]]:
    """(path, bytes) of the images at any depth; what cannot be read is the user's to mend, never skipped."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    for parent, _, names in os.walk(folder, onerror=refuse, followlinks=True):
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = os.path.join(parent, name)
                try:
                    yield path, os.stat(path).st_size
                except OSError as error:  # such as a dangling link
                    refuse(error)


def _hold_out(files: Files, holdout: float, seed: int) -> dict[str, Files]:
    """Split off the share `holdout` of each class, at least one image of every class that has two."""
    mask = np.zeros(len(files), dtype=bool)
    for label in np.unique(files.labels) if holdout else ():
        members = np.flatnonzero(files.labels == label)
        count = min(max(1, round(holdout * len(members))), len(members) - 1)
        mask[members] = held_out([files.paths[index] for index in members], count, seed)
    if not mask.any():
        return {TRAIN: files}
    return {TRAIN: files.take(np.flatnonzero(~mask)), TEST: files.take(np.flatnonzero(mask), TEST)}


def _fingerprint(splits: Mapping[str, Files]) -> str:
    digest = hashlib.sha256()
    for split, files in splits.items():
        for path, size in zip(files.paths, files.sizes.tolist(), strict=True):
            digest.update(f"{split}\0{path}\0{size}\n".encode())
    return digest.hexdigest()
