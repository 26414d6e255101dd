"""Collectives over ranks, except those of gradients. Without a process group each returns this rank's own values.

NCCL carries tensors on a GPU, in the GPU's queue; gloo carries CPU tensors, between hosts. A value that the host needs
within a step (a vote, a count) is a CPU tensor: reading one from a GPU waits for everything in its queue.
"""

from __future__ import annotations

from collections import deque

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def max_of_hosts(number: int) -> int:
    """Return the largest `number` of any rank, through CPU tensors: this does not wait for a GPU's queue."""
    return int(max_over_ranks_(torch.tensor(number)))


def rank() -> int:
    """Return this process's rank; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def sum_over_ranks_(values: Tensor) -> Tensor:
    """Add up every rank's `values`, in place."""
    if is_distributed():
        dist.all_reduce(values)
    return values


def max_over_ranks_(values: Tensor) -> Tensor:
    """Replace `values` by the elementwise maximum over all ranks, in place."""
    if is_distributed():
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def barrier() -> None:
    """Wait until every rank's host calls this; GPUs are not waited for."""
    max_of_hosts(0)


def concatenate_ranks(rows: Tensor) -> Tensor:
    """Return the rows of all ranks in rank order; the shape of `rows` must be the same on all ranks."""
    if not is_distributed():
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def share_buffers(model: nn.Module) -> None:
    """Copy the buffers of rank 0, whose model is saved, to every rank.

    DDP does so at the start of a step only; at the end the statistics of BatchNorm differ between ranks.
    """
    if is_distributed():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


class Vote:
    """Return the highest vote of any rank, the same on all ranks, once per step.

    A result is that of the vote `_BEHIND` steps ago, so that hosts do not wait for each other. Votes are CPU tensors: a
    vote on a GPU would be counted only after everything in its queue, the current step included.
    """

    _BEHIND = 2

    def __init__(self) -> None:
        self._under_way: deque[tuple[dist.Work, Tensor]] = deque()

    def __call__(self, own: int) -> int:
        """Cast this rank's vote and return the latest result; every rank must call this at the same steps."""
        if not is_distributed():
            return own
        vote = torch.tensor(own, dtype=torch.int32)
        work = dist.all_reduce(vote, op=dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        self._under_way.append((work, vote))
        if len(self._under_way) <= self._BEHIND:
            return 0
        work, vote = self._under_way.popleft()
        work.wait()
        return int(vote)


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all ranks in rank order; the number of rows may differ between ranks."""
    if not is_distributed():
        return rows
    counts = concatenate_ranks(torch.tensor([len(rows)])).tolist()
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = concatenate_ranks(padded).split(max(counts)) if max(counts) else [rows] * len(counts)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
