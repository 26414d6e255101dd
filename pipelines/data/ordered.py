"""The deterministic mode: which rows make which step is decided by the plan, not by which task is done first.

Step s trains on rows s * step_rows up to (s + 1) * step_rows of the plan, whatever the number of workers and however
often the run was resumed. The stream is cut into chunks of `Chunks.rows` rows, which divide both a task and every
worker's part of a step, and Ray's splitter hands chunk i to worker i mod world_size: a chunk travels as one row,
sealed, so that Ray neither cuts nor joins it, and its rule of giving to whom has least becomes taking turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from pipelines.data.task import Block

_SEALED = "sealed"
_FAIR = 8  # chunks of a step for each worker, at least, where they do not divide

Filler = Callable[[int, int], Block]
"""(rows, side of an image in pixels) -> rows that are no samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunks:
    """How a stream is cut."""

    rows: int  # of a chunk
    world_size: int

    @classmethod
    def of(cls, step_rows: int, task_rows: int, world_size: int, wanted: int) -> Chunks:
        """Chunks of about `wanted` rows for steps of `step_rows` rows over all workers.

        Where a step does not divide among the workers, chunks are small, so that no worker has much more than another.
        """
        if step_rows % world_size:
            whole, wanted = math.gcd(step_rows, task_rows), max(1, step_rows // (_FAIR * world_size))
        else:
            whole = math.gcd(step_rows // world_size, task_rows)
        return cls(rows=_nearest(_divisors(whole), wanted), world_size=world_size)

    def count(self, rows: int) -> int:
        """Chunks of so many rows; the last one is filled up."""
        return -(-rows // self.rows)

    def missing(self, count: int) -> int:
        """Chunks that `count` of them lack for every worker to get as many, and one at least."""
        return -count % self.world_size if count >= self.world_size else self.world_size - count


def task_rows(step_rows: int, wanted: int) -> int:
    """Rows of one task: about `wanted`, in a whole ratio to a step."""
    return _nearest(
        [*_divisors(step_rows), *(step_rows * steps for steps in range(2, wanted // step_rows + 2))], wanted
    )


def chunked(blocks: Iterable[Block], rows: int, filler: Filler) -> Iterator[Block]:
    """The blocks' rows in blocks of exactly `rows`; the last one, or one of another image size, is filled up."""
    held: list[Block] = []
    missing = rows
    for block in blocks:
        if held and _form(held[0]) != _form(block):
            yield _joined([*held, filler(missing, _side(held[0]))])
            held, missing = [], rows
        begin = 0
        while len(block["id"]) - begin >= missing:
            yield _joined([*held, _part(block, begin, begin + missing)])
            begin += missing
            held, missing = [], rows
        if begin < len(block["id"]):
            held.append(_part(block, begin, len(block["id"])))
            missing -= len(block["id"]) - begin
    if held:
        yield _joined([*held, filler(missing, _side(held[0]))])


def sealed(block: Block) -> dict[str, Any]:
    """A block as one row of a Ray dataset."""
    import pyarrow as pa
    from ray.data.block import BlockAccessor

    table = BlockAccessor.batch_to_block(block)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return {_SEALED: pa.array([sink.getvalue().to_pybytes()], type=pa.large_binary())}


def opened(batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Blocks as they were before they were `sealed`; others as they are."""
    import pyarrow as pa
    from ray.data.block import BlockAccessor

    for batch in batches:
        if _SEALED not in batch:
            yield batch
            continue
        for data in batch[_SEALED]:
            table = pa.ipc.open_stream(pa.py_buffer(data)).read_all()
            yield cast(dict[str, Any], BlockAccessor.for_block(table).to_numpy())


def _side(block: Block) -> int:
    return int(block["size"][0]) if "size" in block else block["image"].shape[-2]


def _form(block: Block) -> tuple[Any, ...]:
    """What blocks that can be joined have in common."""
    sizes = block["size"][:1].tolist() if "size" in block else []
    return block["image"].shape[1:], *sizes


def _part(block: Block, begin: int, end: int) -> Block:
    return block if end - begin == len(block["id"]) else {name: column[begin:end] for name, column in block.items()}


def _joined(blocks: list[Block]) -> Block:
    parts = [block for block in blocks if len(block["id"])]
    return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _divisors(number: int) -> list[int]:
    low = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*low, *(number // divisor for divisor in low)})


def _nearest(numbers: Iterable[int], wanted: int) -> int:
    """The one with the smallest ratio to `wanted`."""
    return min(numbers, key=lambda number: abs(math.log(number / wanted)))
