"""Data sets whose hashes are right and whose records are not: what no `prepare` of ours writes."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from infra.storage import LocalStore
from pipelines.data.prepare.shard_writer import describe
from pipelines.data.shards.manifest import MANIFEST, Manifest


def rewritten(store: LocalStore, manifest: Manifest, changes: Mapping[int, Mapping[str, Any]]) -> Manifest:
    """The data set with columns of some samples, by id, replaced; its shards and its manifest are written anew."""
    shards = list(manifest.shards)
    first = 0
    for place, shard in enumerate(shards):
        ids = range(first, first + shard.rows)
        first += shard.rows
        if not changes.keys() & set(ids):
            continue
        file = Path(store.uri, shard.path)
        with pq.ParquetFile(file) as opened:
            groups = [opened.read_row_group(number).to_pylist() for number in range(len(shard.groups))]
            schema = opened.schema_arrow
        with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
            for rows in groups:
                changed = [{**row, **changes.get(row["id"], {})} for row in rows]
                writer.write_table(pa.Table.from_pylist(changed, schema=schema))
        shards[place] = describe(file, shard.path, shard.split)
    edited = dataclasses.replace(manifest, shards=tuple(shards))
    store.write(MANIFEST, edited.to_json().encode())
    return edited


def forged(width: int, height: int, form: str = "JPEG") -> bytes:
    """A small file whose header claims so many pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (10, 200, 30)).save(buffer, form)
    data = bytearray(buffer.getvalue())
    if form == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
        return bytes(data)
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def text_bomb(size: int) -> bytes:
    """A PNG of 8x8 pixels with a comment that inflates to `size` bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data = buffer.getvalue()
    body = b"zTXt" + b"Comment\x00\x00" + zlib.compress(bytes(size), 9)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk + data[33:]
