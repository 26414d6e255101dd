"""The report of prepare on a data set's images. Its files lie next to the manifest and are written before it.

report.json         counts: images, odd images by kind, duplicates, images left out
duplicates.parquet  images with the same bytes as an earlier one: id, split, key, first_id, first_split, first_key
rejected.parquet    images left out: split, key, reason; split is "" for a table's row without file or label
unlabelled.parquet  images that no row of a table names: key
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipelines.data.prepare.label_sets import class_counts
from pipelines.data.prepare.shard_writer import HASH_BYTES, BadImage, Written
from pipelines.data.shards.manifest import REPORTS

if TYPE_CHECKING:
    from infra.storage import Store
    from pipelines.data.prepare.shard_plan import ShardJob
    from pipelines.data.prepare.source import Samples, Source

REPORT = "report.json"
DUPLICATES, REJECTED, UNLABELLED = REPORTS

Ids = npt.NDArray[np.int64]
_MOST_CLASSES = 20  # rows of the printed table
_WIDEST = 40  # characters of a class name in it


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PrepareReport:
    """The content of report.json."""

    images: int  # images in the shards
    kinds: dict[str, int]  # odd images by kind; one image can have several kinds
    leaked: int  # images that another split contains too
    repeated: int  # images that occur earlier in the same split
    rejected: int  # images left out
    listing: str  # digest of the source's files at that time, if the source has one
    classes: dict[str, list[int]] = dataclasses.field(default_factory=dict)  # images of each class, by split
    notes: Sequence[str] = ()  # lines for users about other files and images that were left out

    def class_lines(self, names: Sequence[str]) -> list[str]:
        """Return a table of the images of each class and split; of many classes, the largest and the smallest."""
        splits = list(self.classes)
        counts = np.array([self.classes[split] for split in splits], dtype=np.int64).T
        if counts.shape != (len(names), len(splits)) or not splits:  # of an earlier version
            return []
        order = list(range(len(names)))
        shown: list[int | None] = [*order]
        if len(names) > _MOST_CLASSES:
            ranked = sorted(order, key=lambda label: (-int(counts[label].sum()), label))
            shown = [*ranked[: _MOST_CLASSES // 2], None, *ranked[-_MOST_CLASSES // 2 :]]
        rest = f"{len(names) - _MOST_CLASSES:,} classes in between"
        width = min(_WIDEST, max(len(names[label]) if label is not None else len(rest) for label in shown))
        head = "  ".join(f"{split:>10}" for split in splits)
        lines = [f"{'class':<{width}}  {head}"]
        for label in shown:
            cells = ["…"] * len(splits) if label is None else [f"{count:,}" for count in counts[label].tolist()]
            name = rest if label is None else names[label]
            lines.append(f"{name[:width]:<{width}}  {'  '.join(f'{cell:>10}' for cell in cells)}")
        return lines

    def lines(self) -> list[str]:
        """Return the lines to print; none if nothing is unusual."""
        lines = list(self.notes)
        if self.kinds:
            counts = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.items())
            lines.append(f"odd images, read as RGB like all others: {counts}")
        if self.leaked or self.repeated:
            lines.append(
                f"duplicates: {self.leaked:,} images are in two splits, {self.repeated:,} more than once in one split: "
                f"see {DUPLICATES}"
            )
        if self.rejected:
            lines.append(f"left out: {self.rejected:,} images that cannot be used: see {REJECTED}")
        return lines


def read_report(store: Store) -> PrepareReport | None:
    """Read the report of a data set; None if there is none, as with data sets of earlier versions."""
    try:
        return PrepareReport(**json.loads(store.read(REPORT)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def report_lines(store: Store) -> list[str]:
    """Return the lines of a data set's report; none if it has no report."""
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
    """Find duplicates by the stored hashes, then write the report's files. A table without rows is not written.

    Args:
        store: the store of the data set.
        source: the source of the samples.
        bad: images left out, by split.
        jobs: all planned shards in id order.
        written: the written shards.
        notes: further lines for users, in addition to those of the source.
    """
    splits = source.splits
    duplicates, first = find_duplicates(b"".join(store.read(job.hashes) for job in jobs))
    columns = _columns(jobs, splits, duplicates, "") | _columns(jobs, splits, first, "first_")
    leaked = sum(a != b for a, b in zip(columns["split"], columns["first_split"], strict=True))
    _write_table(store, DUPLICATES, columns)
    rejected = [
        {"split": split, "key": image.key, "reason": image.reason} for split, images in bad.items() for image in images
    ]
    rejected += [{"split": "", "key": key, "reason": reason} for key, reason in source.contents.unusable]
    _write_table(store, UNLABELLED, {"key": list(source.contents.unlabelled)})
    _write_table(store, REJECTED, {name: [row[name] for row in rejected] for name in ("split", "key", "reason")})
    kinds = sum((Counter(each.kinds) for each in written), Counter[str]())
    report = PrepareReport(
        images=sum(each.shard.rows for each in written),
        kinds=dict(sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))),
        leaked=leaked,
        repeated=len(duplicates) - leaked,
        rejected=len(rejected),
        listing=source.listing,
        classes=_classes(source, jobs),
        notes=[*source.notes, *notes],
    )
    store.write(REPORT, json.dumps(dataclasses.asdict(report), indent=1).encode())


def _classes(source: Source, jobs: Sequence[ShardJob]) -> dict[str, list[int]]:
    classes = len(source.class_names)
    counts = {job.split: np.zeros(classes, dtype=np.int64) for job in jobs}
    for job in jobs:
        labels = source.splits[job.split].labels[job.positions]
        counts[job.split] += class_counts(labels, classes, source.label_sets)
    return {split: each.tolist() for split, each in counts.items()}


def find_duplicates(hashes: bytes) -> tuple[Ids, Ids]:
    """Find duplicates. The call needs about 60 bytes of memory per image.

    Args:
        hashes: `HASH_BYTES` per image, in the order of the ids.

    Returns:
        Ids whose hash a lower id has too, ascending; and for each, the lowest id with that hash.
    """
    words = np.frombuffer(hashes, dtype="<u8").reshape(-1, HASH_BYTES // 8)
    order = np.lexsort(words.T)  # stable: equal hashes stay in id order
    ranked = words[order]
    same = np.concatenate([[False], (ranked[1:] == ranked[:-1]).all(axis=1)]) if len(words) else np.zeros(0, bool)
    leaders = np.flatnonzero(~same)
    first = order[leaders[np.cumsum(~same) - 1]]
    duplicates, firsts = order[same], first[same]
    ascending = np.argsort(duplicates)
    return duplicates[ascending], firsts[ascending]


def _columns(jobs: Sequence[ShardJob], splits: Mapping[str, Samples], ids: Ids, prefix: str) -> dict[str, list[Any]]:
    """Return id, split and key of samples, as columns whose names begin with `prefix`."""
    begins = np.array([job.first_id for job in jobs], dtype=np.int64)
    columns: dict[str, list[Any]] = {f"{prefix}id": ids.tolist(), f"{prefix}split": [], f"{prefix}key": []}
    for sample in ids.tolist():
        job = jobs[int(np.searchsorted(begins, sample, side="right")) - 1]
        columns[f"{prefix}split"].append(job.split)
        columns[f"{prefix}key"].append(splits[job.split].key(int(job.positions[sample - job.first_id])))
    return columns


def _write_table(store: Store, path: str, columns: dict[str, list[Any]]) -> None:
    if not any(columns.values()):
        store.delete(path)  # left by an earlier attempt at the same data set
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), buffer)
    store.write(path, buffer.getvalue().to_pybytes())
