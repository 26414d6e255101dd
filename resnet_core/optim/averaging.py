"""Average of a model's weights over the steps of its training, in a second model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Kept = Callable[[int], float | None]
"""Function of the 0-based step: the average's weight when the step's weights are added; None = no update at this step.

It is a pure function, so a resumed run has no counter to restore.
"""


def exponential(decay: float, *, every: int = 1, warmup: bool = False) -> Kept:
    """Return `decay` at every n-th step; with a warm-up at most (1 + t) / (10 + t) at the update t = 0, 1, …"""

    def kept(step: int) -> float | None:
        update, too_early = divmod(step + 1, every)
        if too_early:
            return None
        done = update - 1
        return min(decay, (1 + done) / (10 + done)) if warmup else decay

    return kept


def equal(start: int) -> Kept:
    """Average the weights after each step from the 0-based `start` on; before it, keep the current weights."""

    def kept(step: int) -> float | None:
        averaged = max(0, step - start)  # updates in the mean before this one
        return averaged / (averaged + 1)

    return kept


def copy_all_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target, one kernel per dtype: BatchNorm has int64 counts as well as floats."""
    pairs = list(zip(targets, sources, strict=True))
    for dtype in dict.fromkeys(target.dtype for target in targets):
        of_type = [pair for pair in pairs if pair[0].dtype == dtype]
        torch._foreach_copy_([target for target, _ in of_type], [source for _, source in of_type])


class WeightAverage:
    """Average of the parameters: average := kept * average + (1 - kept) * parameters; buffers are copied.

    `model` is a complete second model in eval mode, ready to evaluate or save.
    """

    def __init__(self, model: nn.Module, kept: Kept) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._kept = kept

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Add the weights after the 0-based `step` to the average."""
        kept = self._kept(step)
        if kept is None:
            return
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - kept)
        copy_all_(list(self.model.buffers()), list(model.buffers()))
