"""Work items: parts of the plan for data tasks, and their form as text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkItem:
    """The work of a data task: read some row groups, shuffle their rows, skip some, decode and crop the rest."""

    epoch: int
    pieces: tuple[tuple[int, int], ...]  # (index of the shard in the manifest, index of the row group in the shard)
    skip: bytes = b""  # packed bits over the pieces' rows, in the order of `pieces`; empty = no row is skipped
    rows: int  # rows that are not skipped
    image_size: int  # side of the crop, pixels

    def kept(self, total: int) -> Mask:
        """Return a mask over the `total` rows of the pieces: True for rows that are not skipped."""
        if not self.skip:
            return np.ones(total, dtype=bool)
        skipped = np.unpackbits(np.frombuffer(self.skip, dtype=np.uint8), count=total).astype(bool)
        return ~skipped


def to_text(items: Iterable[WorkItem]) -> str:
    """Encode the items of one task as JSON, for the row of a Ray dataset."""
    return json.dumps([[i.epoch, i.pieces, i.skip.hex(), i.rows, i.image_size] for i in items], separators=(",", ":"))


def from_text(text: str) -> list[WorkItem]:
    """Read the result of `to_text`."""
    return [
        WorkItem(
            epoch=epoch,
            pieces=tuple((shard, group) for shard, group in pieces),
            skip=bytes.fromhex(skip),
            rows=rows,
            image_size=image_size,
        )
        for epoch, pieces, skip, rows, image_size in json.loads(text)
    ]
