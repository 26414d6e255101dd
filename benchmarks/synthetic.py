"""Manifests of data sets that do not exist: all that the plan needs of 10^9 images, without the images."""

from __future__ import annotations

import numpy as np

from pipelines.data.images.stored import Stored
from pipelines.data.shards.manifest import Manifest
from pipelines.data.shards.shard_table import GROUP, SHARD, ShardTable


def manifest_of(images: int, *, image_bytes: int, group_rows: int, shard_mb: int) -> Manifest:
    """Build a training split of equal row groups in equal shards, with random hashes; the last ones may be smaller."""
    rng = np.random.default_rng(0)
    groups_per_shard = max(1, shard_mb * 2**20 // (image_bytes * group_rows))
    count = -(-images // group_rows)
    groups = np.zeros(count, dtype=GROUP)
    groups["rows"] = group_rows
    groups["rows"][-1] = images - group_rows * (count - 1)
    groups["length"] = groups["rows"] * image_bytes
    groups["start"] = 4 + (np.arange(count) % groups_per_shard) * group_rows * image_bytes
    groups["sha256"] = np.frombuffer(rng.bytes(32 * count), dtype="V32")
    begins = np.arange(0, count, groups_per_shard)
    shards = np.zeros(len(begins), dtype=SHARD)
    shards["groups"] = np.diff(begins, append=count)
    shards["rows"] = np.add.reduceat(groups["rows"], begins, dtype=np.int64)
    shards["bytes"] = shards["rows"] * image_bytes + 10_000
    shards["footer"]["start"] = shards["rows"] * image_bytes
    shards["footer"]["length"] = 10_000
    for column in (shards["sha256"], shards["footer"]["sha256"]):
        column[:] = np.frombuffer(rng.bytes(32 * len(shards)), dtype="V32")
    paths = np.array([b"train-%06d.parquet" % index for index in range(len(shards))])
    return Manifest(
        class_names=tuple(f"n{index:08d}" for index in range(1000)),
        stored=Stored(form="original", size=0, quality=0, channels=3),
        source="synthetic",
        fingerprint="0" * 64,
        prepare={"seed": 0},
        splits={"train": images},
        shards=ShardTable(["train"], paths, shards, groups),
    )
