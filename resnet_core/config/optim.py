"""The optimizer, its loss and the average of the weights: the recipe's section `optim`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from resnet_core.config.check import require, require_choice

OptimizerName = Literal["sgd", "lars", "lamb", "adamw"]
MomentumForm = Literal["torch", "caffe"]
Loss = Literal["cross_entropy", "bce", "bce_sum"]

_WITH_MOMENTUM = ("sgd", "lars")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """How a gradient becomes an update, of which loss it is, and the average of the weights that comes of it."""

    global_batch_size: int = 256
    """Images per step over all workers; it does not change with their number."""
    lr_per_256: float = 0.1
    """Peak learning rate per 256 images of the global batch (linear scaling, Goyal et al. 2017)."""
    optimizer: OptimizerName = "sgd"
    """Optimizer: SGD with momentum, LARS, LAMB or AdamW."""
    momentum: float = 0.9
    """Momentum of "sgd" and "lars"."""
    momentum_form: MomentumForm = "torch"
    """How the rate enters momentum. torch: v := m v + g, w -= lr v. caffe: v := m v + lr g, w -= v, as the paper's.
    They differ where the rate changes."""
    nesterov: bool = False
    """Nesterov momentum, for "sgd"."""
    beta1: float = 0.9
    """Decay of the gradient's mean, for "lamb" and "adamw", as are beta2 and eps."""
    beta2: float = 0.999
    """Decay of the squared gradient's mean."""
    eps: float = 1e-8
    """Number added to a divisor, for "lars" too. "lamb" is published with 1e-6."""
    trust_coefficient: float = 0.001
    """Rate of a tensor as a share of its norm over its gradient's (eta), for "lars"."""
    weight_decay: float = 1e-4
    """Weight decay of all weights but norms and biases (see decay_norm_and_bias)."""
    decay_norm_and_bias: bool = False
    """Treat norm scales, norm shifts and biases as any other weight, as fb.resnet.torch does. Otherwise they are not
    decayed, nor scaled to their norm by "lars" and "lamb"."""
    clip_norm: float = 0.0
    """Longest gradient over all parameters: a longer one is scaled down to it. 0 = any."""
    sam_rho: float = 0.0
    """Distance at which sharpness-aware steps take the gradient (Foret et al. 2021). 0 = off."""
    sam_every: int = 1
    """Steps from one sharpness-aware step to the next, each of which costs two gradients."""
    loss: Loss = "cross_entropy"
    """Training loss."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes; 0 = off."""
    bce_threshold: float = 0.0
    """Smoothed and mixed targets above this become 1, the others 0, for "bce"; 0 = they stay as they are."""
    ema_decay: float = 0.0
    """Share of the averaged weights kept at each update of the average; 0 = no average."""
    ema_every: int = 1
    """Steps from one update of the average to the next."""
    ema_warmup: bool = False
    """Keep at most (1 + t) / (10 + t) at update t = 0, 1, …, so that the average soon forgets its start."""
    average_from: float = 0.0
    """Start of an equal average of the weights after each step, in schedule.unit; 0 = no average. BatchNorm's
    statistics are those of the last step: set exact_bn_images with it (Izmailov et al. 2018, Section 3.2)."""
    exact_bn_images: int = 0
    """Training images over which BatchNorm's statistics are computed anew after the last step, as in the paper's
    release; 0 = keep the moving averages."""
    sync_batch_norm: bool = False
    """BatchNorm over the images of all workers in a forward pass, not of each alone; on GPUs."""

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_ranges()
        has_momentum = self.optimizer in _WITH_MOMENTUM and self.momentum > 0
        require(not self.nesterov or has_momentum, "optim.nesterov", "false without momentum", self.nesterov)
        require(
            not (self.average_from and self.ema_decay),
            "optim.average_from",
            "0 beside optim.ema_decay: a run has one average",
            self.average_from,
        )

    def _check_choices(self) -> None:
        require_choice("optim.optimizer", self.optimizer, OptimizerName)
        require_choice("optim.momentum_form", self.momentum_form, MomentumForm)
        require_choice("optim.loss", self.loss, Loss)

    def _check_ranges(self) -> None:
        for name, least in (("global_batch_size", 1), ("sam_every", 1), ("ema_every", 1), ("exact_bn_images", 0)):
            require(getattr(self, name) >= least, f"optim.{name}", f"at least {least}", getattr(self, name))
        for name in ("lr_per_256", "trust_coefficient"):
            require(0 < getattr(self, name) < math.inf, f"optim.{name}", "positive and finite", getattr(self, name))
        for name in ("weight_decay", "eps", "clip_norm", "sam_rho", "average_from"):
            require(0 <= getattr(self, name) < math.inf, f"optim.{name}", "finite, at least 0", getattr(self, name))
        for name in ("momentum", "beta1", "beta2", "label_smoothing", "bce_threshold", "ema_decay"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}", "in [0, 1)", getattr(self, name))

    @property
    def peak_lr(self) -> float:
        """Learning rate at the end of the warm-up."""
        return self.lr_per_256 * self.global_batch_size / 256
