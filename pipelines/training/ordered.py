"""The deterministic mode (`data.ordered`): the plan decides the rows of each step, not the order in which tasks end.

Step s trains on rows s * step_rows up to (s + 1) * step_rows of the plan. This holds for any number of workers and of
resumes. The stream is cut into chunks of `Chunks.rows` rows, which divide both a task and each worker's part of a step.

Ray's splitter gives chunk i to worker i mod world_size. A chunk is sealed into one row, so Ray neither cuts nor joins
chunks. The splitter gives the next row to the worker with the fewest rows, so the workers take turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from pipelines.data.tasks.crops import Block

_SEALED = "sealed"
_FAIR = 8  # chunks of a step for each worker, at least, if a step does not divide among the workers

Filler = Callable[[int, int], Block]
"""(rows, side of an image in pixels) -> rows that are no samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunks:
    """The chunks into which a stream is cut."""

    rows: int  # of a chunk
    world_size: int

    @classmethod
    def of(cls, step_rows: int, task_rows: int, world_size: int, wanted: int) -> Chunks:
        """Choose chunks of about `wanted` rows for steps of `step_rows` rows over all workers.

        If a step does not divide among the workers, chunks are small, so that all workers have about as many rows.
        """
        if step_rows % world_size:
            whole, wanted = math.gcd(step_rows, task_rows), max(1, step_rows // (_FAIR * world_size))
        else:
            whole = math.gcd(step_rows // world_size, task_rows)
        return cls(rows=_nearest(_divisors(whole), wanted), world_size=world_size)

    def count(self, rows: int) -> int:
        """Return the number of chunks for `rows`; the last one is filled up."""
        return -(-rows // self.rows)

    def missing(self, count: int) -> int:
        """Return the number of chunks to add to `count`, so that all workers get the same number, at least one."""
        return -count % self.world_size if count >= self.world_size else self.world_size - count


def task_rows(step_rows: int, wanted: int) -> int:
    """Return the rows of one task: about `wanted`, and a divisor or a multiple of a step."""
    return _nearest(
        [*_divisors(step_rows), *(step_rows * steps for steps in range(2, wanted // step_rows + 2))], wanted
    )


def chunked(blocks: Iterable[Block], rows: int, filler: Filler) -> Iterator[Block]:
    """Yield the rows in blocks of exactly `rows`; the last block of each image size is filled up."""
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
    """Return a block as one row of a Ray dataset."""
    import pyarrow as pa
    from ray.data.block import BlockAccessor

    table = BlockAccessor.batch_to_block(block)
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return {_SEALED: pa.array([buffer.getvalue().to_pybytes()], type=pa.large_binary())}


def opened(batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield blocks: those that were `sealed` as they were before, the others unchanged."""
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
    """Return the image shape and size of a block; blocks that agree in both can be joined."""
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
    """Return the number with the smallest ratio to `wanted`."""
    return min(numbers, key=lambda number: abs(math.log(number / wanted)))
