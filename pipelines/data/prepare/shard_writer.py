"""The writing of one shard: read its samples, verify and encode them, and write them as a Parquet file."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipelines.config.crop import MAX_PIXELS, MEGAPIXEL
from pipelines.data.images.kinds import kinds_of
from pipelines.data.images.pillow import DecodeError, open_rgb, resize_shorter, resized_center
from pipelines.data.images.stored import Stored
from pipelines.data.prepare.label_sets import LabelSets
from pipelines.data.prepare.source import Samples, SourceSample
from pipelines.data.shards.manifest import RowGroup, Shard, Span
from pipelines.data.shards.reader import schema

if TYPE_CHECKING:
    import pyarrow.parquet as pq

    from infra.storage import Store
    from pipelines.data.prepare.shard_plan import ShardJob

GROUP_BYTES = 6 * 2**20  # approximate bytes of a row group: large enough to fetch, small enough to shuffle
_JPEG_SIDE = 65_500  # libjpeg's limit, in pixels
HASH_BYTES = 16  # kept bytes of each image's sha256: no chance collisions among 10^9 images


@dataclass(frozen=True, kw_only=True, slots=True)
class BadImage:
    """An image that cannot be used."""

    position: int  # position among the split's samples
    key: str
    reason: str


class BadImages(Exception):
    """A shard has images that do not decode. `images` lists all of them."""

    def __init__(self, images: list[BadImage]) -> None:
        super().__init__(images)
        self.images = images


@dataclass(kw_only=True, slots=True)
class _Seen:
    """Findings about a shard's images, collected while they are written."""

    kinds: Counter[str] = field(default_factory=Counter)
    hashes: bytearray = field(default_factory=bytearray)
    bad: list[BadImage] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A finished shard."""

    shard: Shard
    job: str  # `ShardJob.digest` of the job that wrote it
    kinds: dict[str, int]  # odd images by kind

    def to_json(self) -> bytes:
        """Return the content of the shard's sidecar file."""
        return json.dumps({"shard": self.shard.to_record(), "job": self.job, "kinds": self.kinds}).encode()

    @classmethod
    def from_json(cls, data: str | bytes) -> Written:
        """Read the result of `to_json`."""
        fields = json.loads(data)
        return cls(shard=Shard.from_record(fields["shard"]), job=fields["job"], kinds=fields["kinds"])


def write_shard(store: Store, job: ShardJob, samples: Samples, sets: LabelSets | None = None) -> Written:
    """Read, verify and write the samples of one shard, then its sidecar.

    Args:
        store: the store of the data set.
        job: the shard to write.
        samples: the samples of the whole split.
        sets: the label sets of a multi-label source.

    Raises:
        BadImages: some images do not decode. No shard is written then.
    """
    import pyarrow.parquet as pq

    seen = _Seen()
    with tempfile.TemporaryDirectory(prefix="resnet-ray-") as folder:
        file = Path(folder, "shard.parquet")
        # Pixels and JPEGs hardly compress. Dictionaries and statistics are useless for them.
        with pq.ParquetWriter(
            file, schema(sets is not None), compression="none", use_dictionary=False, write_statistics=False
        ) as writer:
            _write_groups(writer, job, _rows(job, samples, sets, seen))
        if seen.bad:
            raise BadImages(seen.bad)
        shard = describe(file, job.path, job.split)
        store.put_file(job.path, file)
    written = Written(shard=shard, job=job.digest, kinds=dict(seen.kinds))
    store.write(job.hashes, bytes(seen.hashes))
    store.write(job.sidecar, written.to_json())
    return written


def _write_groups(writer: pq.ParquetWriter, job: ShardJob, rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa

    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row["image"])
        if len(group) == job.group_rows or size >= GROUP_BYTES:
            writer.write_table(pa.Table.from_pylist(group, schema=writer.schema))
            group, size = [], 0
    if group:
        writer.write_table(pa.Table.from_pylist(group, schema=writer.schema))


def _rows(job: ShardJob, samples: Samples, sets: LabelSets | None, seen: _Seen) -> Iterator[dict[str, Any]]:
    """Yield the shard's rows. Every image is decoded; all bad images are noted in `seen`."""
    for number, sample in enumerate(samples.take(job.positions).read()):
        try:
            image = encode(sample, job.stored, job.max_megapixels * MEGAPIXEL)
        except DecodeError as error:
            seen.bad.append(BadImage(position=int(job.positions[number]), key=sample.key, reason=str(error)))
            continue
        source = sample.image if isinstance(sample.image, bytes) else sample.image.tobytes()
        seen.hashes += hashlib.sha256(source).digest()[:HASH_BYTES]
        if isinstance(sample.image, bytes):
            seen.kinds.update(kinds_of(sample.image, sample.key))
        label = {"label": sample.label} if sets is None else {"labels": sets[sample.label]}
        yield {"image": image, **label, "id": job.first_id + number, "key": sample.key}


def encode(sample: SourceSample, stored: Stored, max_pixels: int = MAX_PIXELS) -> bytes:
    """Encode a sample's image in the stored form.

    Raises:
        DecodeError: the source's file does not decode, has more than `max_pixels`, or does not fit the stored form.
    """
    if sample.refusal:
        raise DecodeError(sample.refusal)
    if isinstance(sample.image, bytes):
        displayed = stored.pixels == "displayed"
        image = open_rgb(sample.image, max_pixels=max_pixels, shorter=stored.size, displayed=displayed)
    else:
        image = Image.fromarray(sample.image)
    if stored.form == "original":
        assert isinstance(sample.image, bytes)
        return sample.image
    try:
        return _pixels(image, stored) if stored.form == "raw" else _jpeg(image, stored)
    except (OSError, ValueError, MemoryError) as error:  # the exceptions of Pillow's encoders
        size = f"{image.width}x{image.height}"
        raise DecodeError(f"{size} cannot be stored as {stored.form}: {type(error).__name__}: {error}") from error


def _pixels(image: Image.Image, stored: Stored) -> bytes:
    return resized_center(image, stored.size, stored.size).tobytes()


def _jpeg(image: Image.Image, stored: Stored) -> bytes:
    if min(image.size) > stored.size:
        image = resize_shorter(image, stored.size)
    if max(image.size) > _JPEG_SIDE:
        size = f"{image.width}x{image.height}"
        raise DecodeError(f"{size} cannot be stored as JPEG, which has at most {_JPEG_SIDE:,} pixels a side")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=stored.quality)
    return buffer.getvalue()


def describe(file: Path, path: str, split: str) -> Shard:
    """Describe a finished file from its own Parquet metadata. `path` is its name in the data set."""
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
        path=path,
        split=split,
        rows=metadata.num_rows,
        bytes=size,
        sha256=sha256,
        footer=footer,
        groups=tuple(groups),
    )


def _span(file: io.BufferedReader, start: int, length: int) -> Span:
    file.seek(start)
    return Span(start, length, hashlib.sha256(file.read(length)).hexdigest())
