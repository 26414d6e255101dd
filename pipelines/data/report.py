"""What prepare found out about the images besides the shards: written beside the manifest, before it.

report.json       counts: images, odd ones by kind, duplicates, images left out
duplicates.parquet  each image whose bytes another has too: id, split, key, first_id, first_split, first_key
rejected.parquet  each image left out: split, key, reason
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines.data.manifest import REPORTS
from pipelines.data.shard_file import HASH_BYTES, BadImage, Written

if TYPE_CHECKING:
    from infra.storage import Store
    from pipelines.data.layout import ShardJob
    from pipelines.data.samples import Samples, Source

REPORT = "report.json"
DUPLICATES, REJECTED = REPORTS

Ids = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Counts."""

    images: int  # in the shards
    kinds: dict[str, int]  # odd images by kind; one image can be of several
    leaked: int  # images of one split that another split has too
    repeated: int  # images that their own split has before
    rejected: int  # images left out
    listing: str  # digest of the source's files at that time, if the source has one
    classes: dict[str, list[int]] = dataclasses.field(default_factory=dict)  # images of each class, by split
    notes: Sequence[str] = ()  # what else was left out, for people

    def lines(self) -> list[str]:
        """For people; nothing where there is nothing to tell."""
        told = list(self.notes)
        if self.kinds:
            counts = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.items())
            told.append(f"odd images, read as RGB like all others: {counts}")
        if self.leaked or self.repeated:
            told.append(
                f"duplicates: {self.leaked:,} images are in two splits, {self.repeated:,} more than once in one split: "
                f"see {DUPLICATES}"
            )
        if self.rejected:
            told.append(f"left out: {self.rejected:,} images that cannot be used: see {REJECTED}")
        return told


def read_report(store: Store) -> Report | None:
    """The report of a data set; None where an earlier version wrote none."""
    try:
        return Report(**json.loads(store.read(REPORT)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def report_lines(store: Store) -> list[str]:
    """What people are told of a data set's report, if it has one."""
    report = read_report(store)
    return report.lines() if report else []


def write_report(
    store: Store,
    source: Source,
    bad: Mapping[str, Sequence[BadImage]],
    jobs: Sequence[ShardJob],
    written: Sequence[Written],
    notes: Sequence[str] = (),
) -> None:
    """Find duplicates by the hashes beside the shards, then write the three files, those that would be empty not.

    Args:
        store: the data set's.
        source: where the samples come from.
        bad: images left out, by split.
        jobs: all shards in id order.
        written: what became of them.
        notes: on what is left out besides.
    """
    splits = source.splits
    duplicates, first = find_duplicates(b"".join(store.read(job.hashes) for job in jobs))
    columns = _columns(jobs, splits, duplicates, "") | _columns(jobs, splits, first, "first_")
    leaked = sum(a != b for a, b in zip(columns["split"], columns["first_split"], strict=True))
    _write_table(store, DUPLICATES, columns)
    rejected = [
        {"split": split, "key": image.key, "reason": image.reason} for split, images in bad.items() for image in images
    ]
    _write_table(store, REJECTED, {name: [row[name] for row in rejected] for name in ("split", "key", "reason")})
    kinds = sum((Counter(each.kinds) for each in written), Counter[str]())
    report = Report(
        images=sum(each.shard.rows for each in written),
        kinds=dict(sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))),
        leaked=leaked,
        repeated=len(duplicates) - leaked,
        rejected=len(rejected),
        listing=source.listing,
        classes=_classes(splits, jobs),
        notes=[*source.notes, *notes],
    )
    store.write(REPORT, json.dumps(dataclasses.asdict(report), indent=1).encode())


def _classes(splits: Mapping[str, Samples], jobs: Sequence[ShardJob]) -> dict[str, list[int]]:
    most = max((int(samples.labels.max(initial=-1)) for samples in splits.values()), default=-1) + 1
    counts = {job.split: np.zeros(most, dtype=np.int64) for job in jobs}
    for job in jobs:
        counts[job.split] += np.bincount(splits[job.split].labels[job.positions], minlength=most)
    return {split: each.tolist() for split, each in counts.items()}


def find_duplicates(hashes: bytes) -> tuple[Ids, Ids]:
    """Ids whose hash a lower id has, ascending, and the lowest such id of each; `hashes` in the order of the ids.

    Needs about 60 bytes an image for a moment.
    """
    words = np.frombuffer(hashes, dtype="<u8").reshape(-1, HASH_BYTES // 8)
    order = np.lexsort(words.T)  # stable: equal hashes stay in the order of their ids
    ranked = words[order]
    same = np.concatenate([[False], (ranked[1:] == ranked[:-1]).all(axis=1)]) if len(words) else np.zeros(0, bool)
    leaders = np.flatnonzero(~same)
    first = order[leaders[np.cumsum(~same) - 1]]
    duplicates, firsts = order[same], first[same]
    ascending = np.argsort(duplicates)
    return duplicates[ascending], firsts[ascending]


def _columns(jobs: Sequence[ShardJob], splits: Mapping[str, Samples], ids: Ids, prefix: str) -> dict[str, list[Any]]:
    """Id, split and key of samples."""
    begins = np.array([job.first_id for job in jobs], dtype=np.int64)
    columns: dict[str, list[Any]] = {f"{prefix}id": ids.tolist(), f"{prefix}split": [], f"{prefix}key": []}
    for sample in ids.tolist():
        job = jobs[int(np.searchsorted(begins, sample, side="right")) - 1]
        columns[f"{prefix}split"].append(job.split)
        columns[f"{prefix}key"].append(splits[job.split].key(int(job.positions[sample - job.first_id])))
    return columns


def _write_table(store: Store, path: str, columns: dict[str, list[Any]]) -> None:
    if not any(columns.values()):
        store.delete(path)  # of an earlier attempt at the same data set
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    store.write(path, sink.getvalue().to_pybytes())
