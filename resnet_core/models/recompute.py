"""Activation checkpointing of one block: its inside is computed a second time in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, x: Tensor, survival: Tensor | None) -> Tensor:
    """`block(x, survival)`: the same values, gradients, and one update of its norms' running statistics."""
    if torch.compiler.is_compiling():  # which makes running statistics an output, updated once, and takes no contexts
        y: Tensor = checkpoint(block, x, survival, use_reentrant=False)
        return y

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    y = checkpoint(block, x, survival, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return y


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Norms go on to use the batch's statistics, and leave the running ones and their count alone."""
    norms = [module for module in block.modules() if isinstance(module, _NormBase)]
    momenta = [norm.momentum for norm in norms]
    counts = [norm.get_buffer("num_batches_tracked").clone() for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            norm.get_buffer("num_batches_tracked").copy_(count)
