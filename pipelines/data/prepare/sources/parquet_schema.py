"""Detection of the image and label columns of a Parquet file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.errors import UserError
from pipelines.data.prepare.source import Labels

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "fine_label")
_MOST_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The columns to read from a file."""

    image: str  # path of the leaf: "image", or "image.bytes" of Hugging Face's struct<bytes, path>
    label: str
    class_names: tuple[str, ...]  # names of Hugging Face's ClassLabel; empty = the labels have no names


def find_columns(schema: pa.Schema, where: str) -> Columns:
    """Find the image and label columns, by Hugging Face's description of the features or else by name.

    Raises:
        UserError: a column is missing or has another type.
    """
    image = find_image(schema, where)
    features = _features(schema, where)
    label = _choose("label", _of_kind(features, "ClassLabel"), _LABELS, schema, where)
    return Columns(image=image, label=label, class_names=_class_names(features.get(label)))


def _class_names(feature: object) -> tuple[str, ...]:
    """Return the names of a ClassLabel, which stores a list or a dict by number; empty if it has none."""
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict) and all(str(number).isdecimal() for number in names):
        names = [names[number] for number in sorted(names, key=int)]
    return tuple(map(str, names)) if isinstance(names, list) else ()


def find_image(schema: pa.Schema, where: str) -> str:
    """Find the image column, in the form of `Columns.image`. Raise UserError as in `find_columns`."""
    described = _of_kind(_features(schema, where), "Image")
    return _image_leaf(schema, _choose("image", described, _IMAGES, schema, where), where)


def _features(schema: pa.Schema, where: str) -> Mapping[str, Any]:
    """Return Hugging Face's features by column, from the schema's metadata; empty if there are none."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return dict((described.get("info") or {}).get("features") or {})
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{where}: its Hugging Face metadata cannot be read: {error}") from error


def _of_kind(features: Mapping[str, Any], kind: str) -> list[str]:
    return [name for name, each in features.items() if isinstance(each, dict) and each.get("_type") == kind]


def _choose(what: str, described: list[str], known: tuple[str, ...], schema: pa.Schema, where: str) -> str:
    candidates = [name for name in (described or schema.names) if name in known or len(described) == 1]
    ranked = sorted(candidates, key=lambda name: known.index(name) if name in known else -1)
    if not ranked or ranked[0] not in schema.names:
        columns = ", ".join(schema.names)
        raise UserError(f"{where} has no {what} column (columns: {columns}): rename one to {known[0]}")
    return ranked[0]


def _image_leaf(schema: pa.Schema, name: str, where: str) -> str:
    import pyarrow as pa

    kind = schema.field(name).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        name, kind = f"{name}.bytes", kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(f"{where}: column {name} has type {kind}, expected encoded images (binary)")
    return name


def holds_bytes(schema: pa.Schema) -> bool:
    """Return whether a column can hold encoded images: binary, or a struct with a field `bytes`."""
    import pyarrow as pa

    def is_bytes(kind: pa.DataType) -> bool:
        inner = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        return bool(inner or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    return any(is_bytes(field.type) for field in schema)


def require_bytes(file: pq.ParquetFile, column: str, where: str) -> None:
    """Raise UserError if Hugging Face's struct has the paths of the images but not their bytes."""
    if "." not in column or not file.metadata.num_rows:
        return
    statistics = _statistics(file, column)
    if not all(each is not None and each.has_null_count for each in statistics):
        return
    nulls = sum(each.null_count for each in statistics)
    name = column.partition(".")[0]
    if nulls == file.metadata.num_rows and _has_paths(file, name):
        raise UserError(
            f"{where}: column {name} holds the paths of the images and no bytes: write it again with the images in it "
            "(Hugging Face datasets: push_to_hub, or to_parquet after embed_table_storage)"
        )


def _has_paths(file: pq.ParquetFile, name: str) -> bool:
    kind = file.schema_arrow.field(name).type
    if kind.get_field_index("path") < 0:
        return False
    first = next(file.iter_batches(batch_size=1, columns=[name], use_threads=False), None)
    return first is not None and bool((first.column(0)[0].as_py() or {}).get("path"))


def _statistics(file: pq.ParquetFile, column: str) -> list[Any]:
    """Return the statistics of a column in each row group; None for a row group without."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    return [chunk.statistics for chunk in chunks if chunk.path_in_schema == column]


def labels_are_missing(file: pq.ParquetFile, columns: Columns) -> bool:
    """Return whether every label is -1, according to the footer."""
    statistics = _statistics(file, columns.label)
    return bool(statistics) and all(
        each is not None and each.has_min_max and each.min == each.max == -1 for each in statistics
    )


def read_labels(file: pq.ParquetFile, columns: Columns, where: str) -> Labels:
    """Read the label column as class numbers.

    Raises:
        UserError: the labels are not integers, or one is missing or out of range.
    """
    import pyarrow as pa

    column = file.read(columns=[columns.label]).column(0)
    if not pa.types.is_integer(column.type):
        raise UserError(f"{where}: column {columns.label} has type {column.type}, expected class numbers (integers)")
    numbers = column.cast(pa.int64()).fill_null(-1).to_numpy()
    most = len(columns.class_names) or _MOST_CLASSES
    wrong = np.flatnonzero((numbers < 0) | (numbers >= most))
    if len(wrong):
        row = int(wrong[0])
        label = column[row].as_py()
        raise UserError(f"{where}: label {label} of row {row:,} is outside 0..{most - 1}")
    labels: Labels = numbers.astype(np.int32)
    return labels
