"""Which sample goes into which shard, and how one shard is written: the part of prepare that knows no Ray."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from infra.errors import UserError
from pipelines.data.decode import DecodeError, center, open_rgb, resize_shorter
from pipelines.data.manifest import RowGroup, Shard, Span, Stored
from pipelines.data.rng import Purpose, permutation, stream
from pipelines.data.samples import Samples, Source, SourceSample

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from infra.storage import Store

PROGRESS = "_progress"
GROUP_ROWS = (32, 256)  # least and most rows of a row group
GROUP_BYTES = 6 * 2**20  # images of a row group, about: large enough to fetch, small enough to shuffle
_GROUPS_PER_SPLIT = 256  # wanted, so that the batches of a small data set are mixed well too
_MEBIBYTE = 2**20
_MAX_QUALITY = 100
_JPEG_BYTES_PER_PIXEL = 0.4  # photographs at quality 90; only sizes the shards


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """How a source becomes shards."""

    form: Literal["auto", "original", "jpeg", "raw"] = "auto"
    """Stored form; auto = the original bytes of image files, raw pixels of arrays."""
    size: int = 0
    """jpeg: pixels of the shorter side at most; raw: side; 0 = the size that arrays have."""
    quality: int = 90
    """jpeg: Pillow's quality, 1 to 100."""
    shard_mb: int = 128
    """Wanted size of a shard, MiB."""
    min_shards: int = 4
    """Shards of a small split, so that several tasks can read it."""
    holdout: float = 0.1
    """Share of each class that becomes the test split where a folder has none of its own."""
    seed: int = 0
    """Decides what is held out and how samples are spread over the shards."""

    def __post_init__(self) -> None:
        forms = ("auto", "original", "jpeg", "raw")
        _require(self.form in forms, "form", f"must be one of {', '.join(forms)}", self.form)
        _require(self.size >= 0, "size", "must be at least 0", self.size)
        _require(self.size == 0 or self.form != "original", "size", 'must be 0 for form "original"', self.size)
        _require(self.size > 0 or self.form != "jpeg", "size", 'must be at least 1 for form "jpeg"', self.size)
        _require(1 <= self.quality <= _MAX_QUALITY, "quality", "must be in 1..100", self.quality)
        _require(self.shard_mb >= 1, "shard_mb", "must be at least 1", self.shard_mb)
        _require(self.min_shards >= 1, "min_shards", "must be at least 1", self.min_shards)
        _require(0 <= self.holdout < 1, "holdout", "must be in [0, 1)", self.holdout)
        _require(self.seed >= 0, "seed", "must be at least 0", self.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """One shard to write; cheap to send to another process."""

    path: str
    split: str
    first_id: int
    group_rows: int
    stored: Stored
    samples: Samples

    @property
    def sidecar(self) -> str:
        """Where the shard's record lies until the manifest is written."""
        return f"{PROGRESS}/{self.path}.json"


class BadImages(Exception):
    """Images of one shard that do not decode; `reasons` has a line for each."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__(reasons)
        self.reasons = reasons


def stored_form(source: Source, config: PrepareConfig) -> Stored:
    """What the image column will hold.

    Raises:
        UserError: the form does not fit the source.
    """
    form = config.form
    if form == "auto":
        form = "raw" if source.side else "original"
    if form == "original":
        if source.side:
            raise UserError(f'prepare.form "original" needs image files, and this is {source.description}: use "raw"')
        if config.size:
            raise UserError(
                'prepare.size has no effect on image files kept as they are: add prepare.form="jpeg" or "raw"'
            )
        return Stored(form=form, size=0, quality=0, channels=3)
    if form == "jpeg":
        return Stored(form=form, size=config.size, quality=config.quality, channels=3)
    size = config.size or source.side
    if not size:
        raise UserError('prepare.size must be at least 1 for form "raw": image files differ in size')
    return Stored(form=form, size=size, quality=0, channels=source.channels)


def plan_shards(source: Source, stored: Stored, config: PrepareConfig) -> list[ShardJob]:
    """The shards of all splits in id order: each split in one seeded permutation, cut into equal parts."""
    jobs = []
    first_id = 0
    for number, (split, samples) in enumerate(source.splits.items()):
        rows = len(samples)
        order = permutation(stream(config.seed, Purpose.SHARDS, number), rows)
        wanted = math.ceil(rows * _mean_bytes(samples, stored) / (config.shard_mb * _MEBIBYTE))
        least, most = GROUP_ROWS
        group_rows = min(max(rows // _GROUPS_PER_SPLIT, least), most)
        for index, positions in enumerate(np.array_split(order, max(wanted, min(config.min_shards, rows)))):
            jobs.append(
                ShardJob(
                    path=f"{split}-{index:05d}.parquet",
                    split=split,
                    first_id=first_id,
                    group_rows=group_rows,
                    stored=stored,
                    samples=samples.take(positions),
                )
            )
            first_id += len(positions)
    return jobs


def _mean_bytes(samples: Samples, stored: Stored) -> float:
    """Expected bytes of a stored image."""
    if stored.form == "original":
        return samples.mean_bytes
    if stored.form == "raw":
        return float(stored.size * stored.size * stored.channels)
    return stored.size * stored.size * 4 / 3 * _JPEG_BYTES_PER_PIXEL


def write_shard(store: Store, job: ShardJob) -> Shard:
    """Read, verify and write the samples of one shard, then its record beside it.

    Raises:
        BadImages: some do not decode; no shard is written then.
    """
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(prefix="resnet-ray-") as folder:
        file = Path(folder, "shard.parquet")
        # Pixels and JPEGs hardly compress, and dictionaries and statistics of them are of no use.
        with pq.ParquetWriter(
            file, _schema(), compression="none", use_dictionary=False, write_statistics=False
        ) as writer:
            _write_groups(writer, job)
        shard = _describe(file, job)
        store.put_file(job.path, file)
    store.write(job.sidecar, json.dumps(shard.to_record()).encode())
    return shard


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema({"image": pa.binary(), "label": pa.int32(), "id": pa.int64(), "key": pa.string()})


def _write_groups(writer: pq.ParquetWriter, job: ShardJob) -> None:
    import pyarrow as pa

    group: list[dict[str, Any]] = []
    size = 0
    for row in _rows(job):
        group.append(row)
        size += len(row["image"])
        if len(group) == job.group_rows or size >= GROUP_BYTES:
            writer.write_table(pa.Table.from_pylist(group, schema=_schema()))
            group, size = [], 0
    if group:
        writer.write_table(pa.Table.from_pylist(group, schema=_schema()))


def _rows(job: ShardJob) -> Iterator[dict[str, Any]]:
    """The shard's rows. Every image is decoded; at the end all that do not are reported together."""
    bad = []
    for number, sample in enumerate(job.samples.read()):
        try:
            image = encode(sample, job.stored)
        except DecodeError as error:
            bad.append(f"{sample.key} ({error})")
            continue
        yield {"image": image, "label": sample.label, "id": job.first_id + number, "key": sample.key}
    if bad:
        raise BadImages(bad)


def encode(sample: SourceSample, stored: Stored) -> bytes:
    """A sample's image in the stored form.

    Raises:
        DecodeError: the source's file does not decode.
    """
    picture = open_rgb(sample.image) if isinstance(sample.image, bytes) else Image.fromarray(sample.image)
    if stored.form == "original":
        assert isinstance(sample.image, bytes)
        return sample.image
    if stored.form == "raw":
        return center(resize_shorter(picture, stored.size), stored.size).tobytes()
    if min(picture.size) > stored.size:
        picture = resize_shorter(picture, stored.size)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=stored.quality)
    return buffer.getvalue()


def _describe(file: Path, job: ShardJob) -> Shard:
    """The record of a finished file, from its own metadata."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(file)
    groups = []
    with file.open("rb") as opened:
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            columns = [group.column(number) for number in range(group.num_columns)]
            start = min(column.data_page_offset for column in columns)
            span = _span(opened, start, sum(column.total_compressed_size for column in columns))
            groups.append(RowGroup(span.start, span.length, span.sha256, group.num_rows))
        size = file.stat().st_size
        footer_start = groups[-1].start + groups[-1].length
        footer = _span(opened, footer_start, size - footer_start)
        opened.seek(0)
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    return Shard(
        path=job.path,
        split=job.split,
        rows=metadata.num_rows,
        bytes=size,
        sha256=sha256,
        footer=footer,
        groups=tuple(groups),
    )


def _span(file: io.BufferedReader, start: int, length: int) -> Span:
    file.seek(start)
    return Span(start, length, hashlib.sha256(file.read(length)).hexdigest())


def _require(condition: bool, field: str, what: str, value: object) -> None:
    if not condition:
        raise ValueError(f"prepare.{field} {what}, got {value!r}")
