"""The labels of a split without its images: only the label columns of the shards are read.

A row group's label column is a few hundred bytes, and takes one request. ImageNet has 23,000 row groups.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from pipelines.data.shards.bad_records import Fault
from pipelines.data.shards.byte_ranges import FileRange, SpanReader
from pipelines.data.shards.reader import ByteWindow, IntegrityError

if TYPE_CHECKING:
    from infra.storage import Store
    from pipelines.data.shards.manifest import Manifest, Shard

LABELS = "labels.npy"
"""File of a run that holds the labels of its training split, so that a resumed run draws from the same ones."""
_LABEL = "label"
_THREADS = 32  # parallel requests: object storage has a high latency

Labels = npt.NDArray[np.int32]


def split_labels(run: Store, data: Store, manifest: Manifest, split: str) -> Labels:
    """Return the labels of a split in id order, int32 [N]: those that the run's folder holds, else from the shards.

    A label outside the classes becomes -1.

    Raises:
        UserError: a shard is missing, or a footer differs from the manifest.
    """
    count = manifest.splits[split]
    try:
        kept: Labels = np.load(io.BytesIO(run.read(LABELS)), allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        kept = np.zeros(0, dtype=np.int32)
    if len(kept) == count:
        return kept
    labels = read_labels(data, manifest, split)
    buffer = io.BytesIO()
    np.save(buffer, labels, allow_pickle=False)
    run.write(LABELS, buffer.getvalue())
    return labels


def read_labels(store: Store, manifest: Manifest, split: str) -> Labels:
    """Read the labels of a split in id order, int32 [N]; a label outside the classes becomes -1.

    Footers are verified against the manifest. Label columns are not, because hashes cover whole row groups: a data
    task verifies each row group before it is trained on.

    Raises:
        UserError: a shard is missing, or a footer differs from the manifest.
    """
    with ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="labels") as pool:
        parts = list(pool.map(lambda shard: _labels_of(store, shard), manifest.shards_of(split)))
    labels = np.concatenate([np.zeros(0, dtype=np.int32), *parts])
    return np.where((labels >= 0) & (labels < len(manifest.class_names)), labels, -1).astype(np.int32)


def _labels_of(store: Store, shard: Shard) -> Labels:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (footer,) = SpanReader(store).fetch([FileRange(shard, shard.footer, "footer")])
    if isinstance(footer, Fault):
        raise IntegrityError(f"shard {shard.path} in {store.description}: {footer.detail}: restore it or prepare again")
    metadata = pq.read_metadata(pa.BufferReader(footer))
    place = metadata.schema.names.index(_LABEL)
    parts = []
    for group in range(metadata.num_row_groups):
        column = metadata.row_group(group).column(place)
        start, length = column.data_page_offset, column.total_compressed_size
        try:
            data = memoryview(store.read(shard.path, start=start, length=length))
        except FileNotFoundError:
            raise UserError(f"shard {shard.path} is missing in {store.description}: prepare again") from None
        with pq.ParquetFile(pa.PythonFile(ByteWindow(data, start), mode="r"), metadata=metadata) as file:
            parts.append(file.read_row_group(group, columns=[_LABEL], use_threads=False)[_LABEL].to_numpy())
    return np.concatenate(parts).astype(np.int32)
