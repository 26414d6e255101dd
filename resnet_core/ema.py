"""The exponential moving average of a model's weights, kept beside the model."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """After each step: average = decay * average + (1 - decay) * parameters; buffers are copied.

    `model` is a whole model of its own, in eval mode, ready to be scored or saved.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self._average(list(self.model.parameters()), list(model.parameters()), 0)
        for kept, current in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(current, non_blocking=True)
