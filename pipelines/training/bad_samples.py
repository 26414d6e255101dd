"""A worker's bad samples: reported, counted over all ranks, and saved in the run's quarantine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable

import torch

from pipelines.checkpoint import Checkpoint, RunFolder
from pipelines.data.shards.bad_records import QUARANTINE, BadRecord, Quarantine
from pipelines.data.shards.manifest import Manifest
from resnet_core.distributed import gather_rows


class BadSamples:
    """Bad samples of all ranks up to the last save, and this rank's own since then."""

    def __init__(
        self, manifest: Manifest, folder: RunFolder, most: int, tell: Callable[[str], None], begun: Checkpoint | None
    ) -> None:
        """Load the quarantine of `begun`, the checkpoint to resume from; `most` is the limit of the run."""
        self._manifest, self._folder, self._most, self.tell = manifest, folder, most, tell
        known = begun.files.get(QUARANTINE) if begun else None
        self._all = Quarantine.from_parquet(known) if known else Quarantine()
        self._own: list[BadRecord] = []
        self._groups = {(record.shard, record.row_group) for record in self._all.records if record.of_group}

    def take(self, rows: Iterable[tuple[int, int, str]]) -> None:
        """Add bad rows: (id, epoch, note).

        Raises:
            UserError: the run has too many bad samples.
        """
        for row in rows:
            record = BadRecord.of_row(self._manifest, *row)
            if self._all.add([record]):
                self._own.append(record)
                self._report_record(record)
        self._all.check(self._most, self._where)

    def exchange(self) -> bytes | None:
        """Collect what all ranks found since the last save. All ranks call this at the same step.

        Returns:
            The report as Parquet, or None if no sample is bad.

        Raises:
            UserError: as in `take`.
        """
        own, self._own = "".join(json.dumps(dataclasses.asdict(record)) + "\n" for record in self._own), []
        text = gather_rows(torch.tensor(list(own.encode()), dtype=torch.uint8))
        lines = bytes(text.tolist()).decode().splitlines()
        self._all.add(BadRecord(**json.loads(line)) for line in lines)
        self._all.check(self._most, self._where)
        return self._all.to_parquet() if len(self._all) else None

    def _report_record(self, record: BadRecord) -> None:
        """Report a sample in a line, or the first one of a bad row group in a line for the whole group."""
        place = record.shard, record.row_group
        if not record.of_group:
            self.tell(f"quarantined {record} ({len(self._all)} of at most {self._most})")
        elif place not in self._groups:
            self._groups.add(place)
            self.tell(f"quarantined {record} (sample {record.id}, and the others when they are read)")

    def report(self) -> None:
        """Write the known bad samples into the run's folder."""
        self._folder.store.write(QUARANTINE, self._all.to_parquet())

    @property
    def _where(self) -> str:
        return f"{self._folder.store.description}/{QUARANTINE}"
