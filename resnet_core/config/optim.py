"""The optimizer, its loss and the average of the weights: the recipe's section `optim`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from resnet_core.config.check import require


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """SGD with momentum, its loss, and the average of the weights it leaves behind."""

    global_batch_size: int = 256
    """Images per step over all workers; it does not change with their number."""
    lr_per_256: float = 0.1
    """Peak learning rate per 256 images of the global batch (linear scaling, Goyal et al. 2017)."""
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = False
    """Also decay norm scales, norm shifts and biases, as the paper does."""
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    """Share of the averaged weights kept at each step; 0 = no average."""

    def __post_init__(self) -> None:
        require(self.global_batch_size >= 1, "optim.global_batch_size", "at least 1", self.global_batch_size)
        require(0 < self.lr_per_256 < math.inf, "optim.lr_per_256", "positive and finite", self.lr_per_256)
        require(0 <= self.momentum < 1, "optim.momentum", "in [0, 1)", self.momentum)
        require(not self.nesterov or self.momentum > 0, "optim.nesterov", "false without momentum", self.nesterov)
        require(0 <= self.weight_decay < math.inf, "optim.weight_decay", "finite, at least 0", self.weight_decay)
        require(0 <= self.label_smoothing < 1, "optim.label_smoothing", "in [0, 1)", self.label_smoothing)
        require(0 <= self.ema_decay < 1, "optim.ema_decay", "in [0, 1)", self.ema_decay)

    @property
    def peak_lr(self) -> float:
        """Learning rate at the end of the warm-up."""
        return self.lr_per_256 * self.global_batch_size / 256
