"""The columns of a table that prepare uses: those that the user names, else those with a usual name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from infra.errors import UserError
from infra.nearest import nearest
from pipelines.config.prepare import PrepareConfig
from pipelines.data.prepare.sources.place import IMAGE_SUFFIXES

_PATHS = (
    "path",
    "file",
    "filename",
    "filepath",
    "image",
    "img",
    "imagepath",
    "imgpath",
    "imagefile",
    "imagename",
    "photo",
    "picture",
)
_IDS = ("imageid", "id", "name", "uri", "url")  # only if no column has one of the names above
_LABELS = ("label", "labels", "class", "classes", "classname", "category", "target", "tag", "tags")
_SPLITS = ("split", "subset", "partition", "set")
NO_SPLIT = "none"
EVERY = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class TableColumns:
    """The names of the columns to read."""

    path: str
    labels: tuple[str, ...]  # one column of labels, or one of 0 and 1 for each class
    per_class: bool  # True: `labels` are one column for each class
    split: str  # "" = none
    group: str  # "" = none
    guessed: tuple[str, ...]  # "label_column=species" for each guess, for a line that tells the user

    @property
    def read(self) -> tuple[str, ...]:
        """Return the columns in the order path, split, group, labels; absent ones are left out."""
        return (self.path, *filter(None, (self.split, self.group)), *self.labels)


def choose_columns(columns: Sequence[str], config: PrepareConfig, where: str) -> TableColumns:
    """Choose the columns of a table.

    Raises:
        UserError: a named column does not exist, or no column or more than one has a usual name.
    """
    if any(name.lower().endswith(IMAGE_SUFFIXES) for name in columns):
        raise UserError(f"{where} has no header: its first line must name the columns, such as path,label")
    _require_named(columns, config, where)
    guessed: list[str] = []

    def chosen(key: str, usual: Sequence[str], besides: Collection[str], last: Sequence[str] = ()) -> str:
        asked: str = getattr(config, key)
        if asked:
            return asked
        rest = [name for name in columns if name not in besides]
        found = _called(rest, usual) or _called(rest, last)
        if not found and key == "label_column" and len(rest) == 1:
            found = rest
        if len(found) == 1:
            guessed.append(f"prepare.{key}={found[0]}")
            return found[0]
        if key == "split_column":
            return ""
        what = f"{len(found)} columns ({', '.join(found)}) may have" if found else "no column is called like"
        raise UserError(
            f"{where}: {what} the {'paths' if key == 'path_column' else 'labels'} (columns: "
            f"{', '.join(columns)}): name one with --set prepare.{key}=…"
        )

    named = {config.path_column, config.label_column, config.split_column, config.group_column, *config.label_columns}
    group = config.group_column
    path = chosen("path_column", _PATHS, named, _IDS)
    taken = {*named, path}
    split = "" if config.split_column == NO_SPLIT else chosen("split_column", _SPLITS, taken)
    taken |= {split}
    if config.label_columns == (EVERY,):
        labels = tuple(name for name in columns if name not in taken)
    elif config.label_columns:
        labels = tuple(_existing(name, columns, "label_columns", where) for name in config.label_columns)
    else:
        labels = (chosen("label_column", _LABELS, taken),)
    return TableColumns(
        path=path,
        labels=labels,
        per_class=bool(config.label_columns),
        split=split,
        group=group,
        guessed=tuple(guessed),
    )


def _require_named(columns: Sequence[str], config: PrepareConfig, where: str) -> None:
    """Raise UserError if a column that the user names does not exist."""
    for key in ("path_column", "label_column", "split_column", "group_column"):
        asked: str = getattr(config, key)
        if asked and not (key == "split_column" and asked == NO_SPLIT):
            _existing(asked, columns, key, where)


def _existing(name: str, columns: Sequence[str], key: str, where: str) -> str:
    if name not in columns:
        hint = nearest(name, columns)
        raise UserError(f"prepare.{key}: {where} has no column {name!r}{hint}: it has {', '.join(columns)}")
    return name


def _called(columns: Sequence[str], usual: Sequence[str]) -> list[str]:
    return [name for name in columns if "".join(filter(str.isalnum, name.lower())) in usual]
