"""What ranks tell each other beyond gradients. Alone, without a process group, each of these changes nothing."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


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


def gather_rows(rows: Tensor) -> Tensor:
    """Every rank's rows in rank order; each rank may have another number of them."""
    if not is_distributed():
        return rows
    counts = concatenate_ranks(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = concatenate_ranks(padded).split(max(counts)) if max(counts) else [rows] * len(counts)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
