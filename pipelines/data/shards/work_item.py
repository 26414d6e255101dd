"""Work items: parts of the plan for data tasks, and their form as text."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Column = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkItem:
    """The work of a data task: read some row groups, shuffle their rows, skip some, decode and crop the rest."""

    epoch: int
    pieces: tuple[tuple[int, int], ...]  # (index of the shard in the manifest, index of the row group in the shard)
    skip: bytes = b""  # packed bits over the pieces' rows or draws, in the order of `pieces`; empty = none is skipped
    rows: int  # rows that are not skipped
    image_size: int  # side of the crop, pixels
    draws: bytes = b""  # balanced sampling: `packed_draws`; empty = every row once

    def kept(self, total: int) -> Mask:
        """Return a mask over the `total` rows (or draws) of the pieces: True for those that are not skipped."""
        if not self.skip:
            return np.ones(total, dtype=bool)
        skipped = np.unpackbits(np.frombuffer(self.skip, dtype=np.uint8), count=total).astype(bool)
        return ~skipped


def packed_draws(row: Column, copy: Column, number: Column) -> bytes:
    """Pack the draws of an item: the row in its pieces, the repetition, and the number in the epoch, each [n].

    Differences of neighbours are small, so a draw takes one or two bytes.
    """
    columns = np.stack([row, copy, number]).astype(np.int64)
    return zlib.compress(np.diff(columns, prepend=0, axis=1).astype("<i8").tobytes(), level=1)


def unpacked_draws(packed: bytes) -> npt.NDArray[np.int64]:
    """Read the result of `packed_draws`: int64 [3, n]."""
    steps = np.frombuffer(zlib.decompress(packed), dtype="<i8").reshape(3, -1)
    columns: npt.NDArray[np.int64] = np.cumsum(steps, axis=1, dtype=np.int64)
    return columns


def to_text(items: Iterable[WorkItem]) -> str:
    """Encode the items of one task as JSON, for the row of a Ray dataset."""
    records = [
        [i.epoch, i.pieces, i.skip.hex(), i.rows, i.image_size, base64.b64encode(i.draws).decode()] for i in items
    ]
    return json.dumps(records, separators=(",", ":"))


def from_text(text: str) -> list[WorkItem]:
    """Read the result of `to_text`."""
    return [
        WorkItem(
            epoch=epoch,
            pieces=tuple((shard, group) for shard, group in pieces),
            skip=bytes.fromhex(skip),
            rows=rows,
            image_size=image_size,
            draws=base64.b64decode(draws),
        )
        for epoch, pieces, skip, rows, image_size, draws in json.loads(text)
    ]
