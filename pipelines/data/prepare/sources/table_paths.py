"""The files that a table's paths mean: below a root, in the spellings that other systems and programs write."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import PurePosixPath, PureWindowsPath
from urllib.parse import unquote

from infra.errors import UserError
from pipelines.data.prepare.sources.place import IMAGE_SUFFIXES, Place, find_place

_TAILS = 20  # absolute paths whose end is looked for below the root, before the others are given up


class TablePaths:
    """Files below a root, by the paths of a table."""

    def __init__(self, root: Place, files: Mapping[str, int]) -> None:
        """`files` are the bytes of the files, by path below `root`."""
        self.root, self.files = root, files
        self.respelled: tuple[str, str] | None = None  # the first path that was read in another spelling, and its file
        self.prefix = ""  # beginning of absolute paths of another machine, which stands for the root
        self._tails = _TAILS
        self._base = f"{root.store.uri}/"

    def find(self, text: str) -> str | None:
        """Return the file that a path means, or None. The path may be relative to the root, or absolute.

        Backslashes, `./`, `%20`, other compositions of Unicode and a missing suffix are understood.
        """
        if text in self.files:
            return text
        for path in dict.fromkeys(_spellings(text)):
            found = self._below(path) or (self._of_other_machine(path) if _is_absolute(path) else None)
            if found:
                self.respelled = self.respelled or (text, found)
                return found
        return None

    def _below(self, path: str) -> str | None:
        path = path.removeprefix(self._base)
        if self.prefix:
            path = path.removeprefix(self.prefix)
        if path in self.files:
            return path
        composed = unicodedata.normalize("NFC", path)
        return self._composed.get(composed) or self._without_suffix.get(composed)

    def _of_other_machine(self, path: str) -> str | None:
        """Find the file at the end of an absolute path; remember the beginning for all other paths."""
        if self.prefix or not self._tails:
            return None
        self._tails -= 1
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if found := self._below("/".join(parts[depth:])):
                self.prefix = f"{'/'.join(parts[:depth])}/"
                return found
        return None

    @cached_property
    def _composed(self) -> Mapping[str, str]:
        return {unicodedata.normalize("NFC", path): path for path in self.files if not path.isascii()}

    @cached_property
    def _without_suffix(self) -> Mapping[str, str | None]:
        """Images by path without suffix, as in tables of Kaggle; None if there are several."""
        found: dict[str, str | None] = {}
        for path in self.images():
            stem = unicodedata.normalize("NFC", path.rpartition(".")[0])
            found[stem] = None if stem in found else path
        return found

    def images(self) -> Iterator[str]:
        """Yield the paths of all images below the root."""
        return (path for path in self.files if path.lower().endswith(IMAGE_SUFFIXES))

    def hint(self, text: str) -> str:
        """Return where else below the root a file of that name is, for a message; empty if nowhere."""
        name = PurePosixPath(text.replace("\\", "/")).name
        for path in self.files:
            if path.rpartition("/")[2] == name and name != text:
                return f"; there is {self.root.text}/{path}"
            if path.endswith(f"/{text}"):
                return f"; there is {self.root.text}/{path}: set prepare.root={self.root.text}/{path[: -len(text) - 1]}"
        return ""


def _spellings(text: str) -> Iterator[str]:
    for path in (text, text.strip(), unquote(text.strip()).removeprefix("file://")):
        yield path
        slashes = path.replace("\\", "/")
        yield slashes if "://" in slashes else posixpath.normpath(slashes)


def _is_absolute(path: str) -> bool:
    return path.startswith(("/", "s3://", "file://")) or bool(PureWindowsPath(path).drive)


def find_root(table: Place, asked: str, paths: Iterable[str]) -> TablePaths:
    """List the files in which a table's paths are looked up.

    The root is `asked`, or, without it, the table's folder; or the common folder of the paths if all of them are
    absolute and it exists. Of the table's folder, only the part that all paths have in common is listed.

    Raises:
        UserError: the root does not exist or cannot be listed.
    """
    common, absolute = _common(paths)
    if asked:
        try:
            place = find_place(asked)
        except UserError as error:
            raise UserError(f"prepare.root: {error}") from error
        if place.is_file:
            raise UserError(f"prepare.root must be a folder or s3://bucket/prefix, got the file {asked}")
        return TablePaths(place, place.files)
    if absolute and common and (found := _listed(common)):
        return TablePaths(found, found.files)
    folder = table.store.uri
    if common and not absolute and (found := _listed(f"{folder}/{common}")):
        files = {f"{common}/{path}": size for path, size in found.files.items()}
        return TablePaths(Place(text=folder, name=table.name, store=table.store, files={}, folders=()), files)
    place = find_place(folder)
    return TablePaths(place, place.files)


def _listed(text: str) -> Place | None:
    try:
        place = find_place(text)
    except UserError:
        return None
    return None if place.is_file else place


def _common(paths: Iterable[str]) -> tuple[str, bool]:
    """Return the folder that all paths begin with, and whether all of them are absolute."""
    common: list[str] | None = None
    absolute = True
    for text in paths:
        path = text.strip()
        absolute = absolute and _is_absolute(path)
        folder = path.replace("\\", "/").rpartition("/")[0]
        if common is None:
            common = folder.split("/") if folder else []
        elif not folder.startswith("/".join(common)) or len(folder) > len("/".join(common)):
            parts = folder.split("/")
            same = 0
            while same < min(len(common), len(parts)) and common[same] == parts[same]:
                same += 1
            common = common[:same]
    if not common or ".." in common:
        return "", absolute
    return "/".join(common), absolute
