"""What ranks tell each other beyond gradients. Alone, without a process group, each of these changes nothing.

Tensors on a GPU go by NCCL, in its queue; CPU tensors by gloo, between hosts. What a step's host must know (votes,
counts) is a CPU tensor: reading one from a GPU waits for all that is queued there.
"""

from __future__ import annotations

from collections import deque

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def max_of_hosts(number: int) -> int:
    """Return the largest `number` of any rank, by CPU tensors: no GPU's queue is waited for."""
    return int(max_over_ranks_(torch.tensor(number)))


def rank() -> int:
    """Return this process's rank; 0 alone."""
    return dist.get_rank() if is_distributed() else 0


def sum_over_ranks_(values: Tensor) -> Tensor:
    """Add up every rank's `values`, in place."""
    if is_distributed():
        dist.all_reduce(values)
    return values


def max_over_ranks_(values: Tensor) -> Tensor:
    """The elementwise largest of every rank's `values`, in place."""
    if is_distributed():
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def barrier() -> None:
    """Wait until every rank is here: its host, not its GPU."""
    max_of_hosts(0)


def concatenate_ranks(rows: Tensor) -> Tensor:
    """Every rank's rows in rank order; the shape is the same on all of them."""
    if not is_distributed():
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def share_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of rank 0, whose model is the one that is saved.

    DDP does so at the start of a step; at its end each rank's BatchNorm has seen its own images.
    """
    if is_distributed():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


class Vote:
    """Finds the greatest wish of any rank, the same on all of them, once a step.

    An answer belongs to the question of `_BEHIND` steps ago, so that hosts do not wait for each other. Ballots are CPU
    tensors: one on a GPU would be answered after all that its queue holds, the present step included.
    """

    _BEHIND = 2

    def __init__(self) -> None:
        self._under_way: deque[tuple[dist.Work, Tensor]] = deque()

    def __call__(self, wish: int) -> int:
        """Of every rank, at the same steps."""
        if not is_distributed():
            return wish
        ballot = torch.tensor(wish, dtype=torch.int32)
        work = dist.all_reduce(ballot, op=dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._under_way.append((work, ballot))
        if len(self._under_way) <= self._BEHIND:
            return 0
        work, ballot = self._under_way.popleft()
        work.wait()
        return int(ballot)


def gather_rows(rows: Tensor) -> Tensor:
    """Every rank's rows in rank order; each rank may have another number of them."""
    if not is_distributed():
        return rows
    counts = concatenate_ranks(torch.tensor([len(rows)])).tolist()
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = concatenate_ranks(padded).split(max(counts)) if max(counts) else [rows] * len(counts)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
