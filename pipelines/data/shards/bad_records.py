"""Bad records: samples that a run cannot use, each with its reason. The recipe limits their number.

A data task marks a bad record in the column `bad`, so the stream of rows keeps its length. A worker discards the row
and counts it as consumed. Every checkpoint has the list; the run's folder has it as `quarantine.parquet`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from infra.errors import UserError

if TYPE_CHECKING:
    from pipelines.data.shards.manifest import Manifest

QUARANTINE = "quarantine.parquet"
_NAMED = 10  # most ids in a message

Reason = Literal["unreadable", "oversized", "undecodable", "mislabelled"]
"""unreadable: the row group differs from the manifest, even when fetched again. oversized: the image's dimensions, its
bytes or its row group exceed a limit. undecodable: the image does not decode. mislabelled: the label is not a class."""


@dataclass(frozen=True, slots=True)
class Fault:
    """The fault of a bad record."""

    reason: Reason
    detail: str

    def note(self, key: str) -> str:
        """Return the row's entry in the column `bad`. The entry of a good row is ""."""
        return json.dumps([self.reason, self.detail, key])

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRecord:
    """A sample in quarantine. The report has one row of these fields for each."""

    id: int
    key: str
    """The sample's name in the source; "" if its row group was unreadable, or if a worker's device decoded it."""
    shard: str
    row_group: int
    reason: str
    detail: str
    epoch: int
    """The epoch that met the sample first."""

    @classmethod
    def of_row(cls, manifest: Manifest, sample_id: int, epoch: int, note: str) -> BadRecord:
        """Make a bad record from the row's entry in the column `bad`."""
        reason, detail, key = json.loads(note)
        shard, group = locate(manifest, sample_id)
        return cls(id=sample_id, key=key, shard=shard, row_group=group, reason=reason, detail=detail, epoch=epoch)

    @property
    def of_group(self) -> bool:
        """Return whether the whole row group is bad."""
        return not self.key and self.reason in ("unreadable", "oversized")

    def __str__(self) -> str:
        sample = f"sample {self.id}" + (f" ({self.key})" if self.key else "")
        subject = f"row group {self.row_group}" if self.of_group else sample
        return f"{subject} of shard {self.shard}, {self.reason}: {self.detail}"


def locate(manifest: Manifest, sample_id: int) -> tuple[str, int]:
    """Return (path of the shard, index of the row group) of a sample."""
    rows = [shard.rows for shard in manifest.shards]
    ends = np.cumsum(rows)
    place = int(np.searchsorted(ends, sample_id, side="right"))
    shard = manifest.shards[place]
    within = sample_id - int(ends[place]) + shard.rows
    groups = np.cumsum([group.rows for group in shard.groups])
    return shard.path, int(np.searchsorted(groups, within, side="right"))


class Quarantine:
    """The bad records of a run, by sample id."""

    def __init__(self, records: Iterable[BadRecord] = ()) -> None:
        self._records: dict[int, BadRecord] = {}
        self.add(records)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def records(self) -> list[BadRecord]:
        """Return the bad records, sorted by id."""
        return [self._records[sample_id] for sample_id in sorted(self._records)]

    def add(self, records: Iterable[BadRecord]) -> list[BadRecord]:
        """Add bad records. Return those whose sample was not in quarantine yet."""
        new = []
        for record in records:
            if record.id not in self._records:
                self._records[record.id] = record
                new.append(record)
        return new

    def check(self, most: int, where: str) -> None:
        """Raise UserError if there are more than `most` bad records. `where` is the path of the report."""
        if len(self) <= most:
            return
        ids = [str(record.id) for record in self.records]
        shown = ", ".join(ids[:_NAMED]) + (f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else "")
        raise UserError(
            f"{len(self)} bad samples, data.max_bad_samples allows {most}: {shown}; {where} names them with their "
            "reasons: repair the data and prepare again, or allow more"
        )

    def to_parquet(self) -> bytes:
        """Return the report as Parquet: columns id, key, shard, row_group, reason, detail, epoch."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: [getattr(record, name) for record in self.records] for name in BadRecord.__slots__}
        types = {"id": pa.int64(), "row_group": pa.int32(), "epoch": pa.int32()}
        arrays = {name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()}
        buffer = io.BytesIO()
        pq.write_table(pa.table(arrays), buffer)
        return buffer.getvalue()

    @classmethod
    def from_parquet(cls, data: bytes) -> Quarantine:
        """Read the result of `to_parquet`."""
        import pyarrow.parquet as pq

        return cls(BadRecord(**row) for row in pq.read_table(io.BytesIO(data)).to_pylist())
