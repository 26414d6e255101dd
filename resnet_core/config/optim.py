"""Sections `optim` and `loss` of a recipe: the optimizer, the loss, the average of the weights; weights of classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from resnet_core.config.check import require, require_choice

OptimizerName = Literal["sgd", "lars", "lamb", "adamw"]
MomentumForm = Literal["torch", "caffe"]
Loss = Literal["cross_entropy", "bce", "bce_sum"]
ClassWeights = Literal["", "auto"] | dict[str, float]

_WITH_MOMENTUM = ("sgd", "lars")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """Loss, optimizer and average of the weights."""

    global_batch_size: int = 256
    """Images per step over all workers; the number of workers does not change it."""
    lr_per_256: float = 0.1
    """Peak learning rate per 256 images of the global batch (linear scaling, Goyal et al. 2017)."""
    head_lr_factor: float = 1.0
    """Factor of the learning rate of the last layer; 10 is usual where the rest starts from `model.init_from`."""
    layer_decay: float = 1.0
    """Factor of the learning rate from a block to the one before it, down to the stem (Bao et al. 2022, as timm's
    --layer-decay); 1 = off."""
    head_first: float = 0.0
    """Time at the start in which only the last layer trains, in schedule.unit (Kumar et al. 2022); the rest behaves as
    frozen until then."""
    optimizer: OptimizerName = "sgd"
    """Optimizer: SGD with momentum, LARS, LAMB or AdamW."""
    momentum: float = 0.9
    """Momentum of "sgd" and "lars"."""
    momentum_form: MomentumForm = "torch"
    """Place of the rate in momentum: torch = (v := m v + g, w -= lr v); caffe = (v := m v + lr g, w -= v), as in the
    paper. They differ when the rate changes."""
    nesterov: bool = False
    """Nesterov momentum, for "sgd"."""
    beta1: float = 0.9
    """Decay of the gradient's running mean, for "lamb" and "adamw"."""
    beta2: float = 0.999
    """Decay of the squared gradient's running mean, for "lamb" and "adamw"."""
    eps: float = 1e-8
    """Number added to a divisor, for "lamb", "adamw" and "lars"; LAMB's paper has 1e-6."""
    trust_coefficient: float = 0.001
    """Factor eta of "lars": the rate of a tensor is eta times its norm over its gradient's norm."""
    weight_decay: float = 1e-4
    """Weight decay of all weights except norms and biases (see decay_norm_and_bias)."""
    decay_norm_and_bias: bool = False
    """Treat norm scales, norm shifts and biases like other weights, as fb.resnet.torch does; false = no weight decay
    for them, and no scaling to their norm by "lars" and "lamb"."""
    clip_norm: float = 0.0
    """Maximum norm of the gradient over all parameters: a longer gradient is scaled down to it; 0 = off."""
    sam_rho: float = 0.0
    """Distance at which sharpness-aware steps take the gradient (Foret et al. 2021); 0 = off."""
    sam_every: int = 1
    """Steps from one sharpness-aware step to the next; a sharpness-aware step computes two gradients."""
    loss: Loss = "cross_entropy"
    """Training loss: bce and bce_sum = one sigmoid per class, with the mean or the sum over classes."""
    label_smoothing: float = 0.0
    """Fraction of the target that is spread over all classes; 0 = off."""
    bce_threshold: float = 0.0
    """Threshold above which smoothed and mixed targets become 1, the others 0, for "bce"; 0 = keep the targets."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights, at each update; 0 = no average."""
    ema_every: int = 1
    """Steps from one update of the moving average to the next."""
    ema_warmup: bool = False
    """Decay by at most (1 + t) / (10 + t) at update t = 0, 1, …, so that the average soon forgets the first weights."""
    average_from: float = 0.0
    """Time from which an equal average of the weights is kept, in schedule.unit; 0 = no average. BatchNorm's
    statistics stay those of the last step: also set exact_bn_images (Izmailov et al. 2018, Section 3.2)."""
    exact_bn_images: int = 0
    """Number of training images from which BatchNorm's statistics are recomputed after the last step, as in the
    paper's release; 0 = keep the moving averages."""
    sync_batch_norm: bool = False
    """Normalize over the images of all workers in a forward pass, not of each worker alone; on GPUs only."""

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_ranges()
        has_momentum = self.optimizer in _WITH_MOMENTUM and self.momentum > 0
        require(not self.nesterov or has_momentum, "optim.nesterov", "false without momentum", self.nesterov)
        require(
            not (self.average_from and self.ema_decay),
            "optim.average_from",
            "0 if optim.ema_decay is set, because a run keeps one average",
            self.average_from,
        )

    def _check_choices(self) -> None:
        require_choice("optim.optimizer", self.optimizer, OptimizerName)
        require_choice("optim.momentum_form", self.momentum_form, MomentumForm)
        require_choice("optim.loss", self.loss, Loss)

    def _check_ranges(self) -> None:
        for name, least in (("global_batch_size", 1), ("sam_every", 1), ("ema_every", 1), ("exact_bn_images", 0)):
            require(getattr(self, name) >= least, f"optim.{name}", f"at least {least}", getattr(self, name))
        for name in ("lr_per_256", "trust_coefficient", "head_lr_factor"):
            require(0 < getattr(self, name) < math.inf, f"optim.{name}", "positive and finite", getattr(self, name))
        for name in ("weight_decay", "eps", "clip_norm", "sam_rho", "average_from", "head_first"):
            require(0 <= getattr(self, name) < math.inf, f"optim.{name}", "finite, at least 0", getattr(self, name))
        require(0 < self.layer_decay <= 1, "optim.layer_decay", "in (0, 1]", self.layer_decay)
        for name in ("momentum", "beta1", "beta2", "label_smoothing", "bce_threshold", "ema_decay"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}", "in [0, 1)", getattr(self, name))

    @property
    def peak_lr(self) -> float:
        """Return the learning rate at the end of the warm-up."""
        return self.lr_per_256 * self.global_batch_size / 256


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeightsConfig:
    """Weights of classes and of hard images in the training loss; the loss itself is `optim.loss`."""

    class_weights: ClassWeights = ""
    """Weights of the classes: auto = N / (K n) for a class with n of the N training images of K classes; a table of
    class names = those weights, and 1 for other classes; "" = none."""
    focal_gamma: float = 0.0
    """Exponent of the focal loss, which weighs an image by (1 - p)^gamma, with p the probability of its class (Lin et
    al. 2017); 0 = off."""

    def __post_init__(self) -> None:
        require(0 <= self.focal_gamma < math.inf, "loss.focal_gamma", "finite, at least 0", self.focal_gamma)
        if isinstance(self.class_weights, dict):
            require(bool(self.class_weights), "loss.class_weights", '"auto", "" or a table of weights', {})
            for name, weight in self.class_weights.items():
                require(0 < weight < math.inf, f"loss.class_weights.{name}", "positive and finite", weight)
        else:
            choices = '"auto", "" or a table of weights'
            require(self.class_weights in ("", "auto"), "loss.class_weights", choices, self.class_weights)
