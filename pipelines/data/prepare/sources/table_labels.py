"""The labels in a table's cells, and the classes that they make."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from infra.errors import UserError
from infra.nearest import nearest
from pipelines.config.prepare import PrepareConfig
from pipelines.data.prepare.source import Labels
from pipelines.data.prepare.sources.place import counted
from pipelines.data.prepare.sources.table_columns import TableColumns

_NUMBER = re.compile(r"[+-]?[0-9]+(\.0+)?")  # a spreadsheet or pandas may write class 3 as 3.0
_TRUE, _FALSE = ("1", "1.0", "true"), ("0", "0.0", "false")
_JOINERS = "|;"

Words = tuple[str, ...]
"""The labels of one image, each once, in alphabetical order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelReader:
    """Reads the labels of a row."""

    columns: TableColumns
    separator: str  # "" = none
    where: str

    @classmethod
    def of(cls, columns: TableColumns, config: PrepareConfig, where: str) -> LabelReader:
        return cls(columns=columns, separator=config.label_separator, where=where)

    def read(self, values: Sequence[object], row: int) -> Words | None:
        """Return the labels in the label columns of a row; None if the row has no label.

        An empty list, an empty text with a separator, and zeros in all columns mean an image of no class.

        Raises:
            UserError: a value is neither a word nor a whole number, or neither 0 nor 1 in a column for a class.
        """
        if self.columns.per_class:
            return tuple(sorted(self._marked(values, row)))
        (value,) = values
        if isinstance(value, list):
            return _set_of(self._word(each, row) for each in value)
        if self.separator and isinstance(value, str):
            return _set_of(self._word(each, row) for each in value.split(self.separator))
        word = self._word(value, row)
        return (word,) if word else None

    def _marked(self, values: Sequence[object], row: int) -> Iterable[str]:
        for name, value in zip(self.columns.labels, values, strict=True):
            text = str(value).strip().lower()
            if text in _TRUE:
                yield name
            elif text not in _FALSE:
                raise UserError(f"{self.where}: row {row:,} has {value!r} in column {name}, expected 0 or 1")

    def _word(self, value: object, row: int) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, float) and not value.is_integer():
            raise UserError(f"{self.where}: row {row:,} has the label {value}, expected a word or a whole number")
        if isinstance(value, dict):
            raise UserError(f"{self.where}: row {row:,} has the label {value}, expected a word, a number or a list")
        if isinstance(value, float):
            value = int(value)
        return unicodedata.normalize("NFC", str(value)).strip()


def _set_of(words: Iterable[str]) -> Words:
    return tuple(sorted({word for word in words if word}))


def class_names(found: Iterable[str], columns: TableColumns, config: PrepareConfig, where: str) -> tuple[str, ...]:
    """Return the classes in the order that the user asks for; else numbers by value, words in alphabetical order.

    Raises:
        UserError: `prepare.classes` lacks a label, or there is no label at all.
    """
    words = set(found)
    given = config.classes or (columns.labels if columns.per_class else ())
    if given:
        if unknown := sorted(words - set(given)):
            raise UserError(f"prepare.classes lacks the label {unknown[0]!r} of {where}{nearest(unknown[0], given)}")
        return tuple(given)
    if not words:
        raise UserError(f"{where}: no image has a label")
    if all(_NUMBER.fullmatch(word) for word in words):
        return tuple(sorted(words, key=lambda word: (float(word), word)))
    return tuple(sorted(words))


def numbered(sets: Iterable[Words], names: Sequence[str]) -> list[list[int]]:
    """Return the class indices of each set of labels."""
    index = {name: number for number, name in enumerate(names)}
    return [[index[word] for word in words] for words in sets]


def label_notes(names: Sequence[str], columns: TableColumns, multi_label: bool) -> list[str]:
    """Return lines about labels that may be mistakes: spellings that differ in case, joined words."""
    notes = []
    folded: dict[str, str] = {}
    pairs = [(other, name) for name in names if (other := folded.setdefault(name.casefold(), name)) != name]
    if pairs:
        one, other = pairs[0]
        notes.append(f"{counted(len(pairs), 'class')} differ from another in case only, such as {one} and {other}")
    if not multi_label and not columns.per_class:
        for joiner in _JOINERS:
            joined = [name for name in names if joiner in name and all(part in names for part in name.split(joiner))]
            if joined:
                notes.append(
                    f"{counted(len(joined), 'class')} such as {joined[0]} look like several labels: if they are, "
                    f'prepare with --set prepare.label_separator="{joiner}"'
                )
    return notes


def require_trained(labels: dict[str, Labels], counts: dict[str, np.ndarray], names: Sequence[str], where: str) -> None:
    """Raise UserError if a class has images in a held-out split but none in the training split."""
    train, *others = labels
    for split in others:
        lost = np.flatnonzero((counts[split] > 0) & (counts[train] == 0)).tolist()
        if lost:
            more = f" and {counted(len(lost) - 1, 'other class')}" if len(lost) > 1 else ""
            raise UserError(
                f"{where}: class {names[lost[0]]}{more} has images in split {split} but none in split {train}, so no "
                f"model can learn it: give {train} some of its images ({int(counts[split][lost[0]]):,}), or remove them"
            )
