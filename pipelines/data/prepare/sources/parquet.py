"""Parquet files with an image column and a label column, plain or as Hugging Face writes them.

Parquet compresses pages of many rows, so a single row cannot be read alone. Before shards are written, the images of
each file are therefore copied once, in the file's order, to a plain file (`Copy`). That file is read by byte ranges.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from pipelines.data.prepare.source import TRAIN, Contents, Labels, Positions, Source, SourceSample
from pipelines.data.prepare.sources.names import Names
from pipelines.data.prepare.sources.parquet_schema import (
    Columns,
    find_columns,
    labels_are_missing,
    read_labels,
    require_bytes,
)
from pipelines.data.prepare.sources.place import Place, counted, left_out, lfs_hint
from pipelines.data.prepare.sources.ranged_file import RangedFile
from pipelines.data.prepare.sources.ranges import Ranges
from pipelines.data.prepare.sources.splits import Assigned, SplitChoice, assign, hold_out
from pipelines.data.shards.stored_images import MAX_RECORD_BYTES

if TYPE_CHECKING:
    import pyarrow.parquet as pq

    from infra.storage import Store

EXPECTS = "Parquet files (train-*.parquet and validation-*.parquet; columns image and label)"

_ROWS_AT_ONCE = 16
_READ_AHEAD = 4 << 20
_HEAD = 64  # bytes that suffice to recognise a Git LFS pointer


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetFile:
    """One file of a source."""

    store: Store
    path: str
    size: int  # bytes
    column: str  # column of the encoded images: "image" or "image.bytes"
    where: str  # the file's name in messages

    def images(self) -> Iterator[bytes]:
        """Yield the images in the file's order. Only a few rows are in memory at a time."""
        with opened(self.store, self.path, self.size, self.where) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[self.column], use_threads=False):
                column = batch.column(0)
                if "." in self.column:
                    column = column.field(0)
                for value in column:
                    yield value.as_py() or b""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """The copy of one file's images. It is cheap to send to another process."""

    file: ParquetFile
    rows: int

    @property
    def path(self) -> str:
        """Return the path of the copied images, which are concatenated. Their sizes are in `path`.npy, written last."""
        return f"{self.file.path}.bin"

    def make(self, store: Store) -> None:
        """Copy the images, unless an earlier run did."""
        if store.exists(f"{self.path}.npy"):
            return
        sizes = np.zeros(self.rows, dtype=np.int64)
        with tempfile.NamedTemporaryFile(prefix="resnet-ray-", suffix=".bin") as target:
            for row, image in enumerate(self.file.images()):
                sizes[row] = len(image)
                if len(image) <= MAX_RECORD_BYTES:
                    target.write(image)
            target.flush()
            store.put_file(self.path, Path(target.name))
        buffer = io.BytesIO()
        np.save(buffer, sizes, allow_pickle=False)
        store.write(f"{self.path}.npy", buffer.getvalue())

    def sizes(self, store: Store) -> npt.NDArray[np.int64]:
        """Return the bytes of each image, by row."""
        sizes: npt.NDArray[np.int64] = np.load(io.BytesIO(store.read(f"{self.path}.npy")), allow_pickle=False)
        return sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetRows:
    """The samples of one split, by file and row."""

    split: str
    files: tuple[ParquetFile, ...]
    rows: tuple[int, ...]  # rows of each file
    file: npt.NDArray[np.int32]  # each sample's file, as an index into `files`
    row: npt.NDArray[np.int64]  # each sample's row in its file
    labels: Labels
    mean_bytes: float

    def __len__(self) -> int:
        return len(self.labels)

    def key(self, position: int) -> str:
        return f"{self.files[self.file[position]].path}#{self.row[position]}"

    def take(self, positions: Positions, split: str = "") -> ParquetRows:
        return ParquetRows(
            split=split or self.split,
            files=self.files,
            rows=self.rows,
            file=self.file[positions],
            row=self.row[positions],
            labels=self.labels[positions],
            mean_bytes=self.mean_bytes,
        )

    def read(self) -> Iterator[SourceSample]:
        """Yield the samples. Every file that contains one is read whole, so large sources use `copies` instead."""
        wanted: dict[tuple[int, int], bytes] = {}
        places = list(zip(self.file.tolist(), self.row.tolist(), strict=True))
        asked = set(places)
        for number in sorted(set(self.file.tolist())):
            images = enumerate(self.files[number].images())
            wanted |= {(number, row): image for row, image in images if (number, row) in asked}
        for position, place in enumerate(places):
            label, key = int(self.labels[position]), self.key(position)
            yield SourceSample(image=wanted[place], label=label, key=key, split=self.split)

    def copies(self) -> list[Copy]:
        """Return the copies that must be made before `copied` is called: one per file."""
        return [Copy(file=file, rows=rows) for file, rows in zip(self.files, self.rows, strict=True)]

    def copied(self, store: Store) -> Ranges:
        """Return the same samples, read from the copies at `store`."""
        copies = self.copies()
        starts, sizes = np.zeros(len(self), np.int64), np.zeros(len(self), np.int64)
        for number, copy in enumerate(copies):
            of_file = self.file == number
            every = copy.sizes(store)
            kept = np.where(every <= MAX_RECORD_BYTES, every, 0)  # larger ones were not copied
            sizes[of_file] = every[self.row[of_file]]
            starts[of_file] = (np.cumsum(kept) - kept)[self.row[of_file]]
        return Ranges(
            store=store,
            split=self.split,
            objects=Names.of(copy.path for copy in copies),
            object=self.file,
            starts=starts,
            sizes=sizes,
            labels=self.labels,
            keys=Names.of(self.key(position) for position in range(len(self))),
        )


def opened(store: Store, path: str, size: int, where: str) -> pq.ParquetFile:
    """Open a stored Parquet file whose columns are read in pieces. Raise UserError if it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = RangedFile(store, path, length=size, ahead=_READ_AHEAD)
        return pq.ParquetFile(pa.PythonFile(file, mode="r"), buffer_size=_READ_AHEAD, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        why = lfs_hint(store.read(path, start=0, length=min(size, _HEAD))) or f": {error}"
        raise UserError(f"{where} is not a whole Parquet file{why}") from error


def open_parquet(place: Place, choice: SplitChoice) -> Source | None:
    """Open the Parquet files below SOURCE; None if there are none.

    Raises:
        UserError: a file is damaged, or has no known image or label column.
    """
    paths = place.ending(".parquet")
    if not paths:
        return None
    splits = assign(paths, place.text)
    first = _where(place, paths[0])
    with opened(place.store, paths[0], place.files[paths[0]], first) as file:
        columns = find_columns(file.schema_arrow, first)
    splits, unlabelled = _without_unlabelled(place, splits, columns)
    listing = place.listing(paths)

    def load() -> Contents:
        found = {split: _rows(place, split, files, columns) for split, files in splits.files.items()}
        names = columns.class_names or _numbers(found)
        digest = hashlib.sha256("\n".join(names).encode())
        for split, rows in found.items():
            sizes = [(each.path, each.size) for each in rows.files]
            digest.update(repr((split, sizes, rows.rows)).encode() + rows.labels.tobytes())
        parts = found if splits.has_test else hold_out(found[TRAIN], choice)
        notes = left_out(place.besides(paths))
        return Contents(class_names=names, splits=parts, fingerprint=digest.hexdigest(), notes=(*unlabelled, *notes))

    return Source(
        description=f"Parquet files of {place.name} ({splits.layout(choice.holdout)})",
        side=0,
        channels=3,
        listing=listing,
        load=load,
    )


def _without_unlabelled(place: Place, splits: Assigned, columns: Columns) -> tuple[Assigned, tuple[str, ...]]:
    """Leave out held-out splits whose labels are all -1, with a note. Hugging Face publishes contests like this."""
    notes = []
    for split, name in tuple(splits.names.items()):
        if split != TRAIN and all(_is_unlabelled(place, path, columns) for path in splits.files[split]):
            notes.append(f"left out: {counted(len(splits.files[split]), 'file')} of {name}, whose labels are all -1")
            splits = splits.without(split)
    return splits, tuple(notes)


def _is_unlabelled(place: Place, path: str, columns: Columns) -> bool:
    with opened(place.store, path, place.files[path], _where(place, path)) as file:
        return labels_are_missing(file, columns)


def _where(place: Place, path: str) -> str:
    return place.text if place.is_file else f"{place.text}/{path}"


def _rows(place: Place, split: str, paths: tuple[str, ...], columns: Columns) -> ParquetRows:
    files, labels, image_bytes = [], [], 0
    for path in paths:
        where, size = _where(place, path), place.files[path]
        with opened(place.store, path, size, where) as file:
            if find_columns(file.schema_arrow, where) != columns:
                raise UserError(f"{where} has other columns or class names than the files before it")
            require_bytes(file, columns.image, where)
            labels.append(read_labels(file, columns, where))
            image_bytes += _column_bytes(file, columns.image)
        files.append(ParquetFile(store=place.store, path=path, size=size, column=columns.image, where=where))
    rows = tuple(map(len, labels))
    if not sum(rows):
        raise UserError(f"{place.text}: the files of {split} hold no rows")
    return ParquetRows(
        split=split,
        files=tuple(files),
        rows=rows,
        file=np.repeat(np.arange(len(rows), dtype=np.int32), rows),
        row=np.concatenate([np.arange(count) for count in rows]),
        labels=np.concatenate(labels),
        mean_bytes=image_bytes / sum(rows),
    )


def _column_bytes(file: pq.ParquetFile, column: str) -> int:
    """Return the uncompressed bytes of a column, from the footer."""
    total = 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        chunks = (group.column(index) for index in range(group.num_columns))
        total += sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
    return total


def _numbers(found: dict[str, ParquetRows]) -> tuple[str, ...]:
    return tuple(map(str, range(1 + max(int(rows.labels.max()) for rows in found.values()))))
