"""A worker's part in the run's quarantine: what its stream marked as bad, told, counted over all ranks, and saved."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable

import torch

from pipelines.checkpoint import Checkpoint, RunFolder
from pipelines.data.manifest import Manifest
from pipelines.data.quarantine import QUARANTINE, BadRecord, Quarantine
from resnet_core.collective import gather_rows


class BadSamples:
    """The bad samples that this rank knows of: its own, and since the last save those of all ranks."""

    def __init__(
        self, manifest: Manifest, folder: RunFolder, most: int, tell: Callable[[str], None], begun: Checkpoint | None
    ) -> None:
        """`most` is how many the run may have, and `begun` the checkpoint that it continues."""
        self._manifest, self._folder, self._most, self.tell = manifest, folder, most, tell
        known = begun.files.get(QUARANTINE) if begun else None
        self._all = Quarantine.from_parquet(known) if known else Quarantine()
        self._own: list[BadRecord] = []
        self._groups = {(record.shard, record.row_group) for record in self._all.records if record.of_group}

    def take(self, rows: Iterable[tuple[int, int, str]]) -> None:
        """Take in (id, epoch, note) of rows that were thrown away.

        Raises:
            UserError: they are too many for the run.
        """
        for row in rows:
            record = BadRecord.of_row(self._manifest, *row)
            if self._all.add([record]):
                self._own.append(record)
                self._say(record)
        self._all.check(self._most, self._where)

    def exchange(self) -> bytes | None:
        """What every rank found since the last save, put together; all ranks call this at the same step.

        Returns:
            The report, or None if nothing is bad.

        Raises:
            UserError: as in `take`.
        """
        own, self._own = "".join(json.dumps(dataclasses.asdict(record)) + "\n" for record in self._own), []
        text = gather_rows(torch.tensor(list(own.encode()), dtype=torch.uint8))
        lines = bytes(text.tolist()).decode().splitlines()
        self._all.add(BadRecord(**json.loads(line)) for line in lines)
        self._all.check(self._most, self._where)
        return self._all.to_parquet() if len(self._all) else None

    def _say(self, record: BadRecord) -> None:
        """One line for a sample, or for all those of a row group together."""
        place = record.shard, record.row_group
        if not record.of_group:
            self.tell(f"quarantined {record} ({len(self._all)} of at most {self._most})")
        elif place not in self._groups:
            self._groups.add(place)
            self.tell(f"quarantined {record} (sample {record.id} and its others as they come)")

    def report(self) -> None:
        """Write what is known into the run's folder."""
        self._folder.store.write(QUARANTINE, self._all.to_parquet())

    @property
    def _where(self) -> str:
        return f"{self._folder.store.description}/{QUARANTINE}"
