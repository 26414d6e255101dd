"""The plan of the shards: which sample goes into which shard. Pure, seeded, numpy only."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from infra.errors import UserError
from pipelines.config.prepare import MAX_MEGAPIXELS, PrepareConfig
from pipelines.data.images.stored import FilePixels, Stored
from pipelines.data.order.rng import Purpose, permutation, stream
from pipelines.data.prepare.source import Positions, Samples, Source
from pipelines.data.prepare.sources.index import PROGRESS

GROUP_ROWS = (32, 256)  # least and most rows of a row group
_GROUPS_PER_SPLIT = 256  # target, so that batches of a small data set are mixed well too
_MEBIBYTE = 2**20
_JPEG_BYTES_PER_PIXEL = 0.4  # photographs at quality 90; only used to choose the number of shards

Rejected = Mapping[str, Collection[int]]
"""Positions of the samples to leave out, by split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """A shard to write. It is cheap to send to another process."""

    path: str
    split: str
    first_id: int
    group_rows: int
    stored: Stored
    positions: Positions  # positions of the shard's rows among the split's samples
    max_megapixels: int = MAX_MEGAPIXELS  # limit per image

    @property
    def sidecar(self) -> str:
        """Return the path of the shard's description, which is kept until the manifest is written."""
        return f"{PROGRESS}/{self.path}.json"

    @property
    def hashes(self) -> str:
        """Return the path of the hashes of the shard's images, which are kept until the manifest is written."""
        return f"{PROGRESS}/{self.path}.sha256"

    @property
    def digest(self) -> str:
        """Return a digest of the shard's samples, their order and their first id."""
        return hashlib.sha256(f"{self.first_id}:".encode() + self.positions.astype("<i8").tobytes()).hexdigest()


def stored_form(source: Source, config: PrepareConfig) -> Stored:
    """Return the form in which prepare stores the images.

    Raises:
        UserError: the form does not fit the source.
    """
    form = config.form
    pixels = None if source.side else source.pixels if config.pixels == "auto" else config.pixels
    if form == "auto":
        form = "raw" if source.side else "original"
    if form == "original":
        if source.side:
            raise UserError(f'prepare.form "original" needs image files, and this is {source.description}: use "raw"')
        if config.max_megapixels > MAX_MEGAPIXELS:
            raise UserError(
                f'prepare.max_megapixels must be at most {MAX_MEGAPIXELS} for form "original" (training decodes no '
                f'more), got {config.max_megapixels}: add prepare.form="jpeg" or "raw"'
            )
        if config.size:
            raise UserError(
                'prepare.size has no effect on image files kept as they are: add prepare.form="jpeg" or "raw"'
            )
        return Stored(form=form, size=0, quality=0, channels=3, pixels=_unless_stored(pixels))
    if form == "jpeg":
        kept = _unless_stored(pixels)
        return Stored(form=form, size=config.size, quality=config.quality, channels=3, pixels=kept)
    size = config.size or source.side
    if not size:
        raise UserError('prepare.size must be at least 1 for form "raw": image files differ in size')
    return Stored(form=form, size=size, quality=0, channels=source.channels, pixels=pixels)


def _unless_stored(pixels: FilePixels | None) -> FilePixels | None:
    """Return None for stored pixels, which the data set's digest does not mention."""
    return None if pixels == "stored" else pixels


def plan_shards(
    source: Source, stored: Stored, config: PrepareConfig, rejected: Rejected | None = None
) -> list[ShardJob]:
    """Plan the shards of all splits in id order: each split is permuted by the seed, then cut into equal parts.

    Samples from the end of the split's order take the places of rejected ones. Most shards therefore stay the same
    when bad images are found.
    """
    jobs = []
    first_id = 0
    least, most = GROUP_ROWS
    for number, (split, samples) in enumerate(source.splits.items()):
        rows = len(samples)
        order = permutation(stream(config.seed, Purpose.SHARDS, number), rows)
        wanted = math.ceil(rows * _mean_bytes(samples, stored) / (config.shard_mb * _MEBIBYTE))
        parts = np.array_split(order, max(wanted, min(config.min_shards, rows)))
        cuts = np.cumsum([len(part) for part in parts])[:-1]
        kept = _filled(order, (rejected or {}).get(split, ()))
        for index, positions in enumerate(np.split(kept, cuts)):
            if not len(positions):
                continue
            jobs.append(
                ShardJob(
                    path=f"{split}-{index:05d}.parquet",
                    split=split,
                    first_id=first_id,
                    group_rows=min(max(rows // _GROUPS_PER_SPLIT, least), most),
                    stored=stored,
                    positions=positions,
                    max_megapixels=config.max_megapixels,
                )
            )
            first_id += len(positions)
    return jobs


def _filled(order: Positions, left_out: Collection[int]) -> Positions:
    """Remove some members from `order`. The last remaining members fill the gaps."""
    gone = np.isin(order, np.fromiter(left_out, dtype=np.int64, count=len(left_out)))
    count = len(order) - int(gone.sum())
    filled = order[:count].copy()
    filled[gone[:count]] = order[count:][~gone[count:]]
    return filled


def _mean_bytes(samples: Samples, stored: Stored) -> float:
    """Return the expected bytes of a stored image."""
    if stored.form == "original":
        return samples.mean_bytes
    if stored.form == "raw":
        return float(stored.size * stored.size * stored.channels)
    return stored.size * stored.size * 4 / 3 * _JPEG_BYTES_PER_PIXEL
