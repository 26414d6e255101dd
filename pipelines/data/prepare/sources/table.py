"""A table with the path and the label of each image: CSV, TSV, JSON Lines or Parquet without the images themselves."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from infra.errors import UserError
from infra.nearest import nearest
from pipelines.config.prepare import PrepareConfig
from pipelines.data.prepare.label_sets import LabelSets, class_counts
from pipelines.data.prepare.source import SPLITS, TEST, TRAIN, VALIDATION, Contents, Source
from pipelines.data.prepare.sources.parquet import opened
from pipelines.data.prepare.sources.parquet_schema import holds_bytes
from pipelines.data.prepare.sources.place import Place, counted
from pipelines.data.prepare.sources.ranges import Ranges, fingerprint, whole_files
from pipelines.data.prepare.sources.splits import (
    MOST_VALIDATION,
    SplitChoice,
    hold_out,
    listed,
    parted,
    require_one_each,
    split_called,
    with_validation,
)
from pipelines.data.prepare.sources.stratified import stratified
from pipelines.data.prepare.sources.table_columns import NO_SPLIT, TableColumns, choose_columns
from pipelines.data.prepare.sources.table_file import SUFFIXES, TableFile, open_table_file
from pipelines.data.prepare.sources.table_labels import (
    LabelReader,
    Words,
    class_names,
    label_notes,
    numbered,
    require_trained,
)
from pipelines.data.prepare.sources.table_paths import TablePaths, find_root

EXPECTS = "a table of paths and labels (.csv, .tsv, .jsonl, .parquet)"

_MOST_NAMED = 3


def open_table(place: Place, choice: SplitChoice) -> Source | None:
    """Open a table that SOURCE names; None if SOURCE is no table, or a Parquet file with the images in it.

    Raises:
        UserError: the table cannot be read, a column is missing, or rows contradict each other.
    """
    if not place.is_file or not place.ending(*SUFFIXES) or _has_images(place):
        return None
    table = open_table_file(place)
    columns = choose_columns(table.columns, choice.table, place.text)
    paths = find_root(place, choice.table.root, (str(row[0]) for _, row in table.rows((columns.path,))))
    rows = _Rows(table=table, columns=columns, paths=paths, joins=choice.table.multi_label)
    rows.read_all(LabelReader.of(columns, choice.table, place.text))
    rows.check(choice.table)
    contents, layout = _contents(rows, choice)
    source = Source(
        description=f"image files that {place.name} lists ({layout})",
        side=0,
        channels=3,
        load=lambda: contents,
    )
    plain = contents.label_sets is None and not columns.group
    return with_validation(source, choice) if plain else source


def _has_images(place: Place) -> bool:
    ((path, size),) = place.files.items()
    if not path.lower().endswith(".parquet"):
        return False
    with opened(place.store, path, size, place.text) as file:
        return holds_bytes(file.schema_arrow)


@dataclass(kw_only=True, slots=True)
class _Rows:
    """The images that a table names, with what its rows say about them."""

    table: TableFile
    columns: TableColumns
    paths: TablePaths
    joins: bool  # rows of one image are joined
    files: dict[str, int] = field(default_factory=dict)  # number of each image, in the order of the table
    first_row: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("i"))  # number of each image's labels in `sets`
    sets: dict[Words, int] = field(default_factory=dict)
    words: list[Words] = field(default_factory=list)  # the labels of each number
    splits: list[str] = field(default_factory=list)  # value of the split column for each image, if there is one
    groups: list[str] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)  # (path, reason)
    lost: int = 0  # rows without file
    repeated: int = 0  # rows that say what an earlier row says
    conflicts: list[str] = field(default_factory=list)
    several: bool = False  # a row has a list of labels

    def read_all(self, reader: LabelReader) -> None:
        """Read all rows."""
        has_split, has_group = bool(self.columns.split), bool(self.columns.group)
        for row, values in self.table.rows(self.columns.read):
            text, *rest = values
            split = str(rest.pop(0) or "").strip() if has_split else ""
            group = str(rest.pop(0) if rest[0] is not None else "").strip() if has_group else ""
            words = reader.read(rest, row)
            self.several = self.several or isinstance(rest[0], list)
            file = self.paths.find(str(text)) if text else None
            if file is None:
                self.lost += 1
                self.unusable.append((str(text or ""), f"row {row} of the table names no file"))
            elif words is None:
                self.unusable.append((file, f"row {row} of the table has no label"))
            elif file in self.files:
                self._again(file, row, words, (split, group))
            else:
                self.files[file] = len(self.files)
                self.first_row.append(row)
                self.labels.append(self._number(words))
                if has_split:
                    self.splits.append(split)
                if has_group:
                    self.groups.append(group)

    def _number(self, words: Words) -> int:
        number = self.sets.setdefault(words, len(self.sets))
        if number == len(self.words):
            self.words.append(words)
        return number

    def _again(self, file: str, row: int, words: Words, kept: tuple[str, str]) -> None:
        number = self.files[file]
        before = (self.splits[number] if self.splits else "", self.groups[number] if self.groups else "")
        known = self.words[self.labels[number]]
        where = f"{file} (rows {self.first_row[number]:,} and {row:,})"
        if kept != before:
            name, place = ("splits", 0) if kept[0] != before[0] else ("groups", 1)
            self.conflicts.append(f"{where} is in two {name}, {before[place]} and {kept[place]}")
        elif words == known:
            self.repeated += 1
        elif self.joins:
            joined = tuple(sorted({*known, *words}))
            self.labels[number] = self._number(joined)
        else:
            self.conflicts.append(f"{where} has two labels, {_shown(known)} and {_shown(words)}")

    def check(self, config: PrepareConfig) -> None:
        """Raise UserError if rows contradict each other, or if more rows are unusable than allowed."""
        where, named = self.table.where, [text for text, _ in self.unusable]
        if not self.files:
            hint = self.paths.hint(named[0]) if named else ""
            raise UserError(
                f"{where}: none of its {len(named):,} rows has a label and a path of a file below "
                f"{self.paths.root.text} (first: {', '.join(named[:_MOST_NAMED])}){hint or ': set prepare.root'}"
            )
        if self.conflicts:
            several = (
                ""
                if self.joins or "labels" not in self.conflicts[0]
                else ("; if images have several labels, set prepare.multi_label=true")
            )
            raise UserError(
                f"{where}: rows contradict each other for {counted(len(self.conflicts), 'image')}: "
                f"{'; '.join(self.conflicts[:_MOST_NAMED])}: correct them{several}"
            )
        if len(self.unusable) > config.max_bad_images:
            shown = "; ".join(f"{path} ({reason})" for path, reason in self.unusable[:_MOST_NAMED])
            more = f" and {len(self.unusable) - _MOST_NAMED:,} more" if len(self.unusable) > _MOST_NAMED else ""
            root, unlabelled = self.paths.root.text, len(self.unusable) - self.lost
            found = [f"{counted(self.lost, 'row')} without a file below {root}"] if self.lost else []
            found += [f"{counted(unlabelled, 'row')} without a label"] if unlabelled else []
            hint = self.paths.hint(named[0]) if self.lost else ""
            raise UserError(
                f"{where}: {listed(found)}: {shown}{more}{hint}; correct them, or leave them out with --set "
                f"prepare.max_bad_images={len(self.unusable)}"
            )

    def notes(self, unlabelled: Sequence[str]) -> list[str]:
        """Return lines that tell the user what was guessed, read in another way, and left out."""
        lines = [f"guessed by name: {', '.join(self.columns.guessed)}"] if self.columns.guessed else []
        if self.paths.prefix:
            lines.append(f"paths that begin with {self.paths.prefix} were looked up in {self.paths.root.text}")
        elif self.paths.respelled:
            text, file = self.paths.respelled
            lines.append(f"paths were read in another spelling, such as {text} for {file}")
        if self.repeated:
            lines.append(f"{counted(self.repeated, 'row')} that repeat an earlier row")
        if unlabelled:
            shown = ", ".join(unlabelled[:_MOST_NAMED]) + (", …" if len(unlabelled) > _MOST_NAMED else "")
            lines.append(
                f"left out: {counted(len(unlabelled), 'image')} that no row names ({shown}): see unlabelled.parquet"
            )
        return lines


def _shown(words: Words) -> str:
    return "|".join(words) or "none"


def _contents(rows: _Rows, choice: SplitChoice) -> tuple[Contents, str]:
    """Return the contents of a table, and its splits in words for `Source.description`."""
    config, columns, where = choice.table, rows.columns, rows.table.where
    multi_label = rows.several or rows.joins or columns.per_class or bool(config.label_separator)
    order = sorted(rows.files)  # so the order of the rows decides nothing
    places = [rows.files[file] for file in order]
    used = dict.fromkeys(rows.labels[place] for place in places)
    names = class_names({word for number in used for word in rows.words[number]}, columns, config, where)
    indices = numbered((rows.words[number] for number in used), names)
    renumbered = {number: place for place, number in enumerate(used)}
    if not multi_label:
        renumbered = {number: classes[0] for number, classes in zip(used, indices, strict=True)}
    labels = [renumbered[rows.labels[place]] for place in places]
    label_sets = LabelSets.of(indices) if multi_label else None
    files = [(file, rows.paths.files[file]) for file in order]
    samples = whole_files(rows.paths.root.store, TRAIN, files, labels)
    groups = [rows.groups[place] for place in places] if columns.group else None
    values = [rows.splits[place] for place in places] if columns.split else []
    given, layout = _given_splits(samples, values, rows, choice)
    splits = _held_out(given, choice, len(names), label_sets, _of_keys(order, groups), where)
    counts = {each: class_counts(part.labels, len(names), label_sets) for each, part in splits.items()}
    require_trained({each: part.labels for each, part in splits.items()}, counts, names, where)
    named = {*rows.files, *(path for path, _ in rows.unusable)}
    unlabelled = [path for path in rows.paths.images() if path not in named]
    digest = hashlib.sha256(repr((names, label_sets and indices)).encode())
    for part in splits.values():
        digest.update(part.labels.astype("<i4").tobytes())
    contents = Contents(
        class_names=names,
        splits=splits,
        fingerprint=fingerprint(splits, digest.digest()),
        notes=(*rows.notes(unlabelled), *label_notes(names, columns, multi_label)),
        label_sets=label_sets,
        unlabelled=unlabelled,
        unusable=rows.unusable,
    )
    return contents, layout


def _of_keys(keys: Sequence[str], groups: Sequence[str] | None) -> dict[str, str] | None:
    return None if groups is None else dict(zip(keys, groups, strict=True))


def _given_splits(
    samples: Ranges, values: Sequence[str], rows: _Rows, choice: SplitChoice
) -> tuple[dict[str, Ranges], str]:
    """Return the splits of the split column, or all samples as the training split; and their description."""
    held_out = f"{choice.holdout:g} of each class held out"
    column, where = rows.columns.split, rows.table.where
    if not column:
        return {TRAIN: samples}, held_out
    called = {value: split_called(value) for value in dict.fromkeys(values)}
    for value, split in called.items():
        if not split:
            named = f"the value {value!r}" if value else "an empty value"
            raise UserError(
                f"{where}: column {column} has {named}{nearest(value, SPLITS)}: expected {TRAIN}, val or {TEST}, or "
                f"set prepare.split_column={NO_SPLIT}"
            )
    names = require_one_each(((split, value.lower()) for value, split in called.items()), f"{where}, column {column},")
    if TRAIN not in names:
        raise UserError(f"{where}: column {column} has {listed(called)}, but no row is {TRAIN}")
    words = np.array([value.lower() for value in values], dtype=object)
    splits = {split: samples.take(np.flatnonzero(words == name), split) for split, name in names.items()}
    return splits, f"column {column}" if TEST in splits else held_out


def _held_out(
    given: dict[str, Ranges],
    choice: SplitChoice,
    classes: int,
    sets: LabelSets | None,
    groups: dict[str, str] | None,
    where: str,
) -> dict[str, Ranges]:
    """Return the splits with a test split, and, of groups or label sets, a validation split, held out of the rest."""
    _require_whole_groups(given, groups, choice.table.group_column, where)
    if sets is None and groups is None:
        return given if TEST in given else hold_out(given[TRAIN], choice)
    splits = dict(given)
    for split, share in ((TEST, choice.holdout), (VALIDATION, choice.validation)):
        rest = splits[TRAIN]
        share = share if split == TEST else min(share, MOST_VALIDATION / len(rest))
        if split in splits or not share:
            continue
        of_rest = None if groups is None else [groups[key] for key in rest.keys]
        mask = stratified(rest, share, choice.seed, classes=classes, sets=sets, groups=of_rest)
        if not mask.any() and groups is not None:
            raise UserError(
                f"{where}: no {split} split can be held out in whole groups of {choice.table.group_column} "
                f"({counted(len(set(of_rest or ())), 'group')}): every class needs images of two groups; give the "
                f"splits in a column, or set prepare.{'holdout' if split == TEST else split}=0"
            )
        splits |= parted(rest, split, mask)
    return {split: splits[split] for split in SPLITS if split in splits}


def _require_whole_groups(given: dict[str, Ranges], groups: dict[str, str] | None, column: str, where: str) -> None:
    """Raise UserError if the split column tears a group apart."""
    split_of: dict[str, str] = {}
    for split, part in given.items():
        for key in part.keys if groups is not None else ():
            group = (groups or {})[key]
            if group and split_of.setdefault(group, split) != split:
                raise UserError(
                    f"{where}: group {group!r} of {column} has images in split {split_of[group]} and in split {split}: "
                    f"correct the split column, or let prepare split with prepare.split_column={NO_SPLIT}"
                )
