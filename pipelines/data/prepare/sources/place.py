"""The folder, prefix or file that SOURCE names, and the files in it."""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from infra.errors import UserError
from infra.storage import LocalStore, Store, open_store

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo")
_OTHER_SUFFIXES = (".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
IMAGE_SUFFIXES = (*_JPEG_SUFFIXES, *_OTHER_SUFFIXES, ".avif", ".avifs", ".heic", ".heif", ".hif")
"""Suffixes of image files. Reading AVIF or HEIC may need another package, which the error then names."""

_JUNK = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini")
"""Names of files and folders that operating systems create, in lower case."""
_MOST_SUFFIXES = 8
_LONGEST_SUFFIX = 6
_ASKED_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A folder or prefix and the files below it, without hidden files and files of operating systems."""

    text: str  # as the user wrote it; used in messages
    name: str  # last part of the path; used in descriptions
    store: Store
    files: Mapping[str, int]  # bytes by path, sorted by path
    folders: tuple[str, ...]  # paths of folders, sorted; includes empty ones if the storage has them
    is_file: bool = False  # True: SOURCE is one file, the only one in `files`

    def subfolders(self, folder: str = "") -> list[str]:
        """Return the names of the folders directly in `folder`."""
        prefix = f"{folder}/" if folder else ""
        below = (path.removeprefix(prefix) for path in self.folders if path.startswith(prefix))
        return [path for path in below if "/" not in path]

    def ending(self, *suffixes: str) -> list[str]:
        """Return the paths of the files with one of these suffixes."""
        return [path for path in self.files if path.lower().endswith(suffixes)]

    def besides(self, paths: Iterable[str]) -> list[str]:
        """Return the paths of all other files."""
        known = set(paths)
        return [path for path in self.files if path not in known]

    def listing(self, paths: Iterable[str]) -> str:
        """Return a digest of the files' sizes and versions. It changes if a file is rewritten with the same size."""
        paths = list(paths)
        digest = hashlib.sha256()
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            for path, version in zip(paths, pool.map(self.store.version, paths), strict=True):
                digest.update(f"{path}\0{self.files[path]}\0{version}\n".encode())
        return digest.hexdigest()

    def read(self, path: str, *, most: int) -> bytes:
        """Read a whole file and decompress it if its name ends in gz. Raise UserError above `most` bytes."""
        where = f"{self.text}/{path}" if not self.is_file else self.text
        try:
            data = self.store.read(path)
            if path.endswith((".gz", ".tgz")):
                with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
                    data = file.read(most + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{where} cannot be read: {error}") from error
        if len(data) > most:
            raise UserError(f"{where} holds more than {most:,} bytes: it is not a file of this kind")
        return data


def is_hidden(path: str) -> bool:
    """Return whether a part of the path begins with a dot, or is a name that an operating system creates."""
    return any(part.startswith(".") or part.lower() in _JUNK for part in path.split("/"))


def printable(path: str) -> str:
    """Return the path with bytes that are not UTF-8 as backslash escapes (`caf\\xe9.jpg`), to print and store it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def require_utf8(place: Place) -> None:
    """Raise UserError if a name is not UTF-8: keys and class names are text."""
    for path in (*place.folders, *place.files):
        if not path.isascii() and any("\ud800" <= character <= "\udfff" for character in path):
            raise UserError(f"{printable(f'{place.text}/{path}')}: this name is not UTF-8: rename it")


def by_suffix(paths: Iterable[str]) -> str:
    """Count files by suffix, the most frequent first: "6 .avif, 2 .txt"."""
    counts = Counter(_suffix(path) for path in paths)
    ranked = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    parts = [f"{count:,} {suffix}" for suffix, count in ranked[:_MOST_SUFFIXES]]
    rest = sum(count for _, count in ranked[_MOST_SUFFIXES:])
    return ", ".join([*parts, f"{rest:,} others"] if rest else parts)


def _suffix(path: str) -> str:
    suffix = PurePosixPath(path).suffix.lower()
    return suffix if 1 < len(suffix) <= _LONGEST_SUFFIX else "without a suffix"


def lfs_hint(head: bytes) -> str:
    """Return the advice for a file that is only a Git LFS pointer; empty for other files."""
    return ": it is a Git LFS pointer, run git lfs pull" if head.startswith(b"version https://git-lfs") else ""


def left_out(paths: Iterable[str]) -> tuple[str, ...]:
    """Return a note on files that are not read, for `Contents.notes`; none if there are no such files."""
    paths = list(paths)
    return (f"left out: {counted(len(paths), 'file')} of other kinds ({by_suffix(paths)})",) if paths else ()


def counted(count: int, what: str) -> str:
    """Return a count with its noun, such as "1 file" or "1,000 files"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def find_place(text: str) -> Place:
    """List the files of SOURCE.

    Raises:
        UserError: SOURCE does not exist, is empty or cannot be listed.
    """
    store = open_store(text)
    place = _local(text, Path(store.uri)) if isinstance(store, LocalStore) else _remote(text, store)
    if not place.files and not place.folders:
        raise UserError(f"source {text} is empty")
    return place


def _local(text: str, path: Path) -> Place:
    path = path.resolve()
    if path.is_file():
        files = {path.name: path.stat().st_size}
        store = LocalStore(uri=str(path.parent))
        return Place(text=text, name=printable(path.name), store=store, files=files, folders=(), is_file=True)
    if not path.is_dir():
        raise UserError(f"source {text} does not exist{_near(path)}")
    found, folders = _walk(path)
    store = LocalStore(uri=str(path))
    name = printable(path.name)
    return Place(text=text.rstrip("/"), name=name, store=store, files=dict(sorted(found.items())), folders=folders)


def _near(path: Path) -> str:
    """Return a hint that names the neighbour with the closest name."""
    try:
        neighbours = [entry.name for entry in os.scandir(path.parent)]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, neighbours, n=1)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""


def _walk(root: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the sizes of the files, and the folders. Raise UserError if one cannot be read; none is skipped."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error

    files: dict[str, int] = {}
    folders: list[str] = []
    for parent, below, names in os.walk(root, onerror=refuse, followlinks=True):
        below[:] = [name for name in below if not is_hidden(name)]
        inside = os.path.relpath(parent, root).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        folders += [prefix + name for name in below]
        for name in names:
            if not is_hidden(name):
                try:
                    files[prefix + name] = os.stat(os.path.join(parent, name)).st_size
                except OSError as error:  # such as a dangling link
                    refuse(error)
    return files, tuple(sorted(folders))


def _remote(text: str, store: Store) -> Place:
    store.check_access(write=False)
    name = PurePosixPath(store.uri).name
    found = dict(store.list())
    if not found and name:
        above = open_store(store.uri.removesuffix(f"/{name}"))
        size = above.size(name) if above.uri != store.uri else None
        if size is not None:
            return Place(text=text, name=name, store=above, files={name: size}, folders=(), is_file=True)
    files = {path: size for path, size in found.items() if not is_hidden(path)}
    folders = sorted({str(folder) for path in files for folder in list(PurePosixPath(path).parents)[:-1]})
    if not files:
        raise UserError(f"source {text} does not exist: there is nothing below it at {store.description}")
    return Place(text=text.rstrip("/"), name=name, store=store, files=files, folders=tuple(folders))
