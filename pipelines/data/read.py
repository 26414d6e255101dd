"""The one reader of shards: ranged reads, each verified against the manifest before anything parses it."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from infra.errors import UserError
from pipelines.data.decode import DecodeError, open_rgb

if TYPE_CHECKING:
    import pyarrow as pa

    from infra.storage import Store
    from pipelines.data.manifest import Shard, Span, Stored

_FETCHES = 2  # a first mismatch may be the transfer's fault; a second one is the storage's


class IntegrityError(UserError):
    """Stored bytes are not those that prepare wrote."""


def read_rows(store: Store, shard: Shard, groups: Sequence[int]) -> pa.Table:
    """Rows of some row groups of a shard, in the order given.

    Returns:
        Columns image (binary), label (int32), id (int64), key (string).

    Raises:
        UserError: the shard is missing.
        IntegrityError: a byte range differs from the manifest, twice.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # A sparse copy of the shard: pages that nobody writes cost nothing, and Parquet's offsets hold as they are.
    sparse = mmap.mmap(-1, shard.bytes)
    _place(sparse, shard.footer, _fetch(store, shard, shard.footer, "footer"))
    for group in groups:
        span = shard.groups[group]
        _place(sparse, span, _fetch(store, shard, span, f"row group {group}"))
    with pq.ParquetFile(pa.BufferReader(pa.py_buffer(sparse))) as file:
        return file.read_row_groups(list(groups), use_threads=False)


def open_record(record: bytes, stored: Stored) -> Image.Image:
    """The stored bytes of one image as a Pillow image in mode RGB.

    Raises:
        DecodeError: not an image of the stored form.
    """
    if stored.form != "raw":
        return open_rgb(record)
    if len(record) != stored.size * stored.size * stored.channels:
        raise DecodeError(f"{len(record):,} bytes, expected {stored.size}x{stored.size}x{stored.channels}")
    mode = "L" if stored.channels == 1 else "RGB"
    return Image.frombytes(mode, (stored.size, stored.size), record).convert("RGB")


def to_rgb(table: pa.Table, stored: Stored) -> list[npt.NDArray[np.uint8]]:
    """The images of a table from `read_rows`, uint8 HWC each. Raises `DecodeError`."""
    return [np.asarray(open_record(record, stored)) for record in table["image"].to_pylist()]


def _place(sparse: mmap.mmap, span: Span, data: bytes) -> None:
    sparse[span.start : span.start + span.length] = data


def _fetch(store: Store, shard: Shard, span: Span, what: str) -> bytes:
    actual = ""
    for _ in range(_FETCHES):
        try:
            data = store.read(shard.path, start=span.start, length=span.length)
        except FileNotFoundError:
            raise UserError(
                f"shard {shard.path} is missing in {store.description}: restore it or prepare again"
            ) from None
        actual = hashlib.sha256(data).hexdigest()
        if actual == span.sha256:
            return data
    raise IntegrityError(
        f"shard {shard.path} in {store.description}: {what} has sha256 {actual[:16]}… ({len(data):,} bytes), "
        f"the manifest says {span.sha256[:16]}… ({span.length:,} bytes): restore the shard or prepare again"
    )
