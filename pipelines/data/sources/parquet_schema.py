"""Which columns of a Parquet file hold the images and the labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.errors import UserError
from pipelines.data.samples import Labels

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_IMAGES = ("image", "img")
_LABELS = ("label", "labels", "fine_label")
_MOST_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """What to read of a file."""

    image: str  # path of the leaf: "image", or "image.bytes" of Hugging Face's struct<bytes, path>
    label: str
    class_names: tuple[str, ...]  # of Hugging Face's ClassLabel; empty = the labels are just numbers


def find_columns(schema: pa.Schema, where: str) -> Columns:
    """The image and label columns, by Hugging Face's description of the features if there is one, else by name.

    Raises:
        UserError: there is none, or it is of another type.
    """
    image = find_image(schema, where)
    features = _features(schema, where)
    label = _choose("label", _of_kind(features, "ClassLabel"), _LABELS, schema, where)
    names = features.get(label, {}).get("names", ())
    return Columns(image=image, label=label, class_names=tuple(map(str, names)))


def find_image(schema: pa.Schema, where: str) -> str:
    """The image column alone, as `Columns.image`. Raises `UserError` likewise."""
    described = _of_kind(_features(schema, where), "Image")
    return _image_leaf(schema, _choose("image", described, _IMAGES, schema, where), where)


def _features(schema: pa.Schema, where: str) -> Mapping[str, Any]:
    """Features by column, from the schema's metadata; empty where there is no such description."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return dict(described.get("info", {}).get("features", {}))
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{where}: its metadata of Hugging Face cannot be read: {error}") from error


def _of_kind(features: Mapping[str, Any], kind: str) -> list[str]:
    return [name for name, each in features.items() if isinstance(each, dict) and each.get("_type") == kind]


def _choose(what: str, described: list[str], known: tuple[str, ...], schema: pa.Schema, where: str) -> str:
    candidates = [name for name in (described or schema.names) if name in known or len(described) == 1]
    ranked = sorted(candidates, key=lambda name: known.index(name) if name in known else -1)
    if not ranked or ranked[0] not in schema.names:
        columns = ", ".join(schema.names)
        raise UserError(f"{where} has no {what} column (columns: {columns}): name one {known[0]}")
    return ranked[0]


def _image_leaf(schema: pa.Schema, name: str, where: str) -> str:
    import pyarrow as pa

    kind = schema.field(name).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        name, kind = f"{name}.bytes", kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(f"{where}: column {name} is {kind}, and images are encoded bytes (binary)")
    return name


def read_labels(file: pq.ParquetFile, columns: Columns, where: str) -> Labels:
    """The label column as class numbers.

    Raises:
        UserError: they are no whole numbers, or one is missing or out of range.
    """
    import pyarrow as pa

    column = file.read(columns=[columns.label]).column(0)
    if not pa.types.is_integer(column.type):
        raise UserError(f"{where}: column {columns.label} is {column.type}, and labels are class numbers from 0 on")
    numbers = column.cast(pa.int64()).fill_null(-1).to_numpy()
    most = len(columns.class_names) or _MOST_CLASSES
    wrong = np.flatnonzero((numbers < 0) | (numbers >= most))
    if len(wrong):
        row = int(wrong[0])
        told = column[row].as_py()
        raise UserError(f"{where}: label {told} of row {row:,} is outside 0..{most - 1}")
    labels: Labels = numbers.astype(np.int32)
    return labels
