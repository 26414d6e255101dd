"""Images of Parquet files that other tools wrote, with or without labels."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra.errors import UserError
from infra.storage import Store
from pipelines.data.prepare.sources.parquet import opened
from pipelines.data.prepare.sources.parquet_schema import find_image, require_bytes
from pipelines.data.prepare.sources.place import Place
from pipelines.inference.sources.images import SourcePart, UnlabelledImage

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_ROWS_AT_ONCE = 16
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    path: str
    size: int  # bytes
    column: str  # column with the encoded images: "image" or "image.bytes"
    groups: tuple[int, ...]  # rows of each row group


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetImages:
    """The image column of some Parquet files; a part is a row group."""

    text: str  # as the user named the place
    store: Store
    files: tuple[_File, ...]

    @classmethod
    def of(cls, place: Place) -> ParquetImages:
        """Read the footers of a place's Parquet files. Raises UserError if one is damaged or has no image column."""
        paths = place.ending(".parquet")
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            files = tuple(pool.map(lambda path: _file(place, path), paths))
        if not any(sum(file.groups) for file in files):
            raise UserError(f"{place.text}: its Parquet files hold no rows")
        return cls(text=place.text, store=place.store, files=files)

    @property
    def description(self) -> str:
        return f"{len(self.files):,} Parquet files"

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.store.uri, self.files)).encode()).hexdigest()

    @property
    def stored(self) -> None:
        return None

    @property
    def parts(self) -> Sequence[SourcePart]:
        return [SourcePart(first=first, rows=rows) for first, rows, _, _ in self._groups()]

    def read(self, part: SourcePart) -> Iterator[UnlabelledImage]:
        file, group = next((file, group) for first, _, file, group in self._groups() if first == part.first)
        begin = sum(file.groups[:group])
        with opened(self.store, file.path, file.size, f"{self.text}: {file.path}") as parquet:
            values = _values(parquet, group, file.column)
            for row in range(part.rows):
                record, fault = next(values)
                yield UnlabelledImage(part.first + row, f"{file.path}#{begin + row}", record, fault)

    def _groups(self) -> Iterator[tuple[int, int, _File, int]]:
        """Yield first row, number of rows, file, and number in the file, for every row group that has rows."""
        first = 0
        for file in self.files:
            for group, rows in enumerate(file.groups):
                if rows:
                    yield first, rows, file, group
                first += rows


def _file(place: Place, path: str) -> _File:
    where, size = f"{place.text}: {path}", place.files[path]
    with opened(place.store, path, size, where) as file:
        metadata = file.metadata
        groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
        column = find_image(file.schema_arrow, where)
        require_bytes(file, column, where)
        return _File(path=path, size=size, column=column, groups=groups)


def _values(parquet: pq.ParquetFile, group: int, name: str) -> Iterator[tuple[bytes, str]]:
    """Yield (image, fault) for each row of a row group; after damage, yield faults without end."""
    import pyarrow as pa

    try:
        for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[name], use_threads=False):
            column = batch.column(0)
            for value in column.field(0) if "." in name else column:
                record = value.as_py()
                yield (record, "") if record else (b"", "the row has no image")
    except (pa.ArrowException, OSError) as error:
        yield from itertools.repeat((b"", f"cannot be read: {str(error).splitlines()[0]}"))
