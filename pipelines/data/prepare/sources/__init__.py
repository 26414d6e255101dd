"""Sources of labelled images: `open_source` turns a word, path or URI into a `Source`.

To add a kind: write EXPECTS and open_KIND(place, choice), which returns None if `place` holds no such files, and add
them to `_KINDS`. For whole files, `ranges.py` has `whole_files` and `fingerprint(splits, labels)`, `splits.py` has
`hold_out` for the test split, `place.py` has `left_out` for notes; `open_source` adds the validation split. `idx.py` is
the shortest example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from infra.errors import UserError
from pipelines.config.prepare import PrepareConfig
from pipelines.data.prepare.source import Source
from pipelines.data.prepare.sources import cifar, folders, idx, imagenet, parquet, table, webdataset
from pipelines.data.prepare.sources.mnist5k import MNIST5K, open_mnist5k
from pipelines.data.prepare.sources.place import IMAGE_SUFFIXES, Place, by_suffix, counted, find_place, require_utf8
from pipelines.data.prepare.sources.splits import SplitChoice, with_validation
from pipelines.data.prepare.sources.table_file import SUFFIXES
from pipelines.data.shards.manifest import is_dataset

if TYPE_CHECKING:
    from infra.storage import Store

__all__ = ["EXPECTS", "open_source"]

_Open = Callable[[Place, SplitChoice], Source | None]

_KINDS: tuple[tuple[str, _Open], ...] = (
    (imagenet.EXPECTS, imagenet.open_imagenet),
    (cifar.EXPECTS, cifar.open_cifar),
    (idx.EXPECTS, idx.open_idx),
    (webdataset.EXPECTS, webdataset.open_webdataset),
    (parquet.EXPECTS, parquet.open_parquet),
    (folders.EXPECTS, folders.open_folders),
)
"""Kinds of source, in the order in which they are tried: the most specific first."""

_TABLES = (".xlsx", ".xls", ".ods", ".json", ".txt", *SUFFIXES)
_ARCHIVES = (".zip", ".rar", ".7z", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".gz")

EXPECTS = "; ".join((*(expects for expects, _ in _KINDS), table.EXPECTS, f"the word {MNIST5K}"))


def open_source(
    text: str,
    *,
    holdout: float = 0.1,
    validation: float = 0.0,
    seed: int = 0,
    keep: Store | None = None,
    columns: PrepareConfig | None = None,
) -> Source:
    """List a source. Nothing is decoded, and archives are not opened yet.

    Args:
        text: a folder or s3://bucket/prefix that holds one of `EXPECTS`, one such file, or the word mnist5k.
        holdout: fraction of each class that becomes the test split, if the source has no test split.
        validation: fraction of each class's training images that becomes the validation split, if the source has none.
        seed: decides which images are held out.
        keep: store for the index of archives until the data set is finished (`_progress/`); None = not kept.
        columns: the columns and the root of a table; None = guessed.

    Raises:
        UserError: the source does not exist or is incomplete.
    """
    named = columns or PrepareConfig()
    choice = SplitChoice(holdout=holdout, validation=validation, seed=seed, keep=keep, table=named)
    if text == MNIST5K:
        return with_validation(open_mnist5k(seed), choice)
    place = find_place(text)
    require_utf8(place)
    if not place.is_file and is_dataset(place.store):
        raise UserError(f"source {text} is a data set that prepare wrote: train on it, or name its original source")
    if (listed := table.open_table(place, choice)) is not None:
        return listed
    for _, open_kind in _KINDS:
        source = open_kind(place, choice)
        if source is not None:
            return with_validation(source, choice)
    raise UserError(f"{_found(place)}: expected {_example(place)}")


def _found(place: Place) -> str:
    """Describe the contents of a source of unknown kind, for an error message."""
    images = place.ending(*IMAGE_SUFFIXES)
    tables = place.ending(*_TABLES)
    archives = place.ending(*_ARCHIVES)
    if place.is_file:
        kinds = (
            ("one image", images),
            ("a table of another kind: save it as CSV", tables),
            ("an archive that is not read: unpack it", archives),
        )
        return f"source {place.text} is {next((kind for kind, found in kinds if found), 'a file of no known kind')}"
    if images:
        readable = [path for path in tables if path.lower().endswith(SUFFIXES)]
        text = f"; the table {tables[0]} is not read" if tables else ""
        text = f"; for labels in a table, name {place.text}/{readable[0]}" if readable else text
        return f"source {place.text} holds {counted(len(images), 'image')} but no class folders{text}"
    if archives:
        return f"source {place.text} holds {archives[0]}, an archive that is not read: unpack it"
    return f"source {place.text} holds no supported files ({by_suffix(place.files)})"


def _example(place: Place) -> str:
    root = "SOURCE" if place.is_file else place.text
    return (
        f"{root}/CLASS/*.jpg, or {root}/train/CLASS/*.jpg and {root}/val/CLASS/*.jpg "
        "(other kinds: prepare.py --help, docs/data-sources.md)"
    )
