"""Image files: named one by one, or all below a folder or prefix."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from infra.errors import UserError
from infra.storage import Store
from pipelines.data.prepare.sources.place import IMAGE_SUFFIXES, Place, by_suffix, left_out, printable
from pipelines.inference.sources.images import SourcePart, UnlabelledImage, even_parts

_PART_ROWS = 128
_READ_AT_ONCE = 16  # an object store takes a while for each file, however small


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """Files below one root. A file that the user named is a folder with one file."""

    text: str  # as the user named it
    store: Store
    paths: tuple[str, ...]
    sizes: tuple[int, ...]  # bytes
    named: bool  # the file itself was named, not its folder
    notes: tuple[str, ...] = ()  # on files that are skipped

    @classmethod
    def of(cls, place: Place) -> Folder:
        """Return a named file, or a folder's files with an image's suffix. Raises UserError if there are none."""
        paths = list(place.files) if place.is_file else place.ending(*IMAGE_SUFFIXES)
        rest = place.besides(paths)
        if not paths:
            found = f" (found {by_suffix(rest)})" if rest else ""
            raise UserError(f"{place.text} holds no images{found}: their names end in {', '.join(IMAGE_SUFFIXES)}")
        sizes = tuple(place.files[path] for path in paths)
        notes = tuple(f"{note} below {place.text}" for note in left_out(rest))
        return cls(
            text=printable(place.text),
            store=place.store,
            paths=tuple(paths),
            sizes=sizes,
            named=place.is_file,
            notes=notes,
        )

    def shown(self, path: str) -> str:
        """Return a file's path as the user would write it."""
        return self.text if self.named else printable(f"{self.text}/{path}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFiles:
    """The files of several folders, one after another."""

    folders: tuple[Folder, ...]

    @classmethod
    def of(cls, places: Sequence[Place]) -> ImageFiles:
        """Find the files that the user named. Raises UserError if a folder holds no images."""
        return cls(folders=tuple(map(Folder.of, places)))

    @property
    def description(self) -> str:
        """Number of files, for people."""
        return f"{sum(len(folder.paths) for folder in self.folders):,} image files"

    @property
    def notes(self) -> list[str]:
        """Notes on the files that are skipped."""
        return [note for folder in self.folders for note in folder.notes]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the files' roots, paths and sizes."""
        digest = hashlib.sha256()
        for folder in self.folders:
            digest.update(repr((folder.store.uri, folder.paths, folder.sizes)).encode())
        return digest.hexdigest()

    @property
    def stored(self) -> None:
        return None

    @property
    def parts(self) -> list[SourcePart]:
        return even_parts(sum(len(folder.paths) for folder in self.folders), _PART_ROWS)

    def read(self, part: SourcePart) -> Iterator[UnlabelledImage]:
        with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
            yield from pool.map(lambda each: _read_image(*each), self._named(part))

    def _named(self, part: SourcePart) -> Iterator[tuple[Folder, str, int]]:
        """Yield folder, path and number of each file of a part."""
        first = 0
        for folder in self.folders:
            begin, end = max(0, part.first - first), min(len(folder.paths), part.first + part.rows - first)
            for place in range(begin, end):
                yield folder, folder.paths[place], first + place
            first += len(folder.paths)


def _read_image(folder: Folder, path: str, number: int) -> UnlabelledImage:
    try:
        return UnlabelledImage(number, folder.shown(path), folder.store.read(path))
    except OSError as error:
        return UnlabelledImage(number, folder.shown(path), b"", f"cannot be read: {error.strerror or error}")
