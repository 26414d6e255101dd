"""Tables as files: CSV, TSV, JSON Lines and Parquet. At most a few thousand rows are in memory at a time."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from infra.errors import UserError
from pipelines.data.prepare.sources.parquet import opened
from pipelines.data.prepare.sources.place import Place
from pipelines.data.prepare.sources.ranged_file import RangedFile

_TEXT = (".csv", ".tsv")
_JSON = (".jsonl", ".ndjson")
SUFFIXES = (*_TEXT, *_JSON, ".parquet")

_AHEAD = 1 << 20
_SEEN = 100  # objects of a JSON Lines file whose keys are its columns
_ROWS_AT_ONCE = 4096
_DELIMITERS = (",", ";", "\t")  # a spreadsheet in a language with decimal commas writes semicolons

Row = tuple[int, Sequence[object]]
"""(number of the row as an editor shows it, or counted from 1 in Parquet; value of each asked column)"""


class TableFile(Protocol):
    """A table with named columns."""

    @property
    def where(self) -> str:
        """Return the table's name in messages."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns."""

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """Yield the values of these columns, row by row. Raise UserError if a row cannot be read."""


def open_table_file(place: Place) -> TableFile:
    """Open the only file of `place`, whose name ends in one of `SUFFIXES`."""
    name = next(iter(place.files)).lower()
    if name.endswith(_TEXT):
        return _Csv.of(place, "\t" if name.endswith(".tsv") else "")
    return _Json.of(place) if name.endswith(_JSON) else _Parquet.of(place)


def _text(place: Place) -> io.TextIOWrapper:
    """Open a text file in UTF-8 with or without a byte order mark, or in UTF-16 with one."""
    ((path, size),) = place.files.items()
    head = place.store.read(path, start=0, length=min(size, 4))
    utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    raw = io.BufferedReader(RangedFile(place.store, path, length=size, ahead=_AHEAD), _AHEAD)
    return io.TextIOWrapper(raw, encoding="utf-16" if utf16 else "utf-8-sig", newline="")


def _not_utf8(where: str, error: UnicodeDecodeError) -> UserError:
    text = bytes(error.object[max(0, error.start - 20) : error.start + 10]).splitlines()
    around = next((line for line in text if error.object[error.start] in line), b"its end").decode(
        "ascii", "backslashreplace"
    )
    return UserError(
        f"{where} is not UTF-8 (near {around}): save it as UTF-8, for example with iconv -f windows-1252 -t utf-8"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Csv:
    where: str
    columns: tuple[str, ...]
    place: Place
    delimiter: str

    @classmethod
    def of(cls, place: Place, delimiter: str) -> _Csv:
        try:
            with _text(place) as file:
                line = file.readline()
        except UnicodeDecodeError as error:
            raise _not_utf8(place.text, error) from error
        delimiter = delimiter or max(_DELIMITERS, key=line.count)
        columns = tuple(name.strip() for name in next(csv.reader([line], delimiter=delimiter), []))
        if len(set(columns)) < len(columns):
            twice = next(name for name in columns if columns.count(name) > 1)
            raise UserError(f"{place.text} has two columns called {twice!r}: rename one")
        return cls(where=place.text, columns=columns, place=place, delimiter=delimiter)

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        places = [self.columns.index(name) for name in columns]
        with _text(self.place) as file:
            reader = csv.reader(file, delimiter=self.delimiter, strict=True)
            try:
                next(reader)
                for row in reader:
                    if not any(row):
                        continue
                    if len(row) != len(self.columns):
                        raise UserError(
                            f"{self.where}: line {reader.line_num:,} has {len(row)} values, the header has "
                            f"{len(self.columns)}: put values with {self.delimiter!r} in them into double quotes"
                        )
                    yield reader.line_num, [row[place] for place in places]
            except UnicodeDecodeError as error:
                raise _not_utf8(self.where, error) from error
            except csv.Error as error:
                raise UserError(f"{self.where}: line {reader.line_num:,} cannot be read: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Json:
    where: str
    columns: tuple[str, ...]
    place: Place

    @classmethod
    def of(cls, place: Place) -> _Json:
        columns: dict[str, None] = {}
        for _, row in itertools.islice(_objects(place), _SEEN):
            columns |= dict.fromkeys(row)
        return cls(where=place.text, columns=tuple(columns), place=place)

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        for number, row in _objects(self.place):
            yield number, [row.get(name) for name in columns]


def _objects(place: Place) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line, object) for the lines of a JSON Lines file that are not blank."""
    number = 0
    with _text(place) as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{place.text}: line {number:,} is no JSON object: write one object on each line")
                yield number, row
        except UnicodeDecodeError as error:
            raise _not_utf8(place.text, error) from error
        except ValueError as error:
            raise UserError(f"{place.text}: line {number:,} is no JSON object: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parquet:
    where: str
    columns: tuple[str, ...]
    place: Place

    @classmethod
    def of(cls, place: Place) -> _Parquet:
        ((path, size),) = place.files.items()
        with opened(place.store, path, size, place.text) as file:
            return cls(where=place.text, columns=tuple(file.schema_arrow.names), place=place)

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        ((path, size),) = self.place.files.items()
        number = 0
        with opened(self.place.store, path, size, self.where) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(columns), use_threads=False):
                values = [batch.column(name).to_pylist() for name in columns]
                for row in zip(*values, strict=True):
                    number += 1
                    yield number, row
