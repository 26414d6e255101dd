"""The core's sections of a recipe: frozen, each checks itself, none imports torch.

A value that cannot be trained with raises ValueError naming its field as the recipe spells it, e.g. `optim.momentum`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

ImageNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
CifarName = Literal["resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202"]
ModelName = Literal[ImageNetName, CifarName]
Family = Literal["imagenet", "cifar"]
Unit = Literal["epochs", "steps"]
Shape = Literal["cosine", "linear", "step", "constant"]
Precision = Literal["fp32", "bf16"]
Rgb = tuple[float, float, float]

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


def _require(holds: bool, field: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{field} must be {rule}: got {value!r}")


def _require_choice(field: str, value: object, choices: object) -> None:
    names = get_args(choices)
    _require(value in names, field, f"one of {', '.join(names)}", value)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which network. The names are torchvision's for ImageNet and the paper's (Section 4.2) for CIFAR."""

    name: ModelName = "resnet20"
    num_classes: int = 0
    """Outputs of the last layer; 0 = as many as the data set has (filled in by the pipeline)."""
    zero_init_last: bool = False
    """Start every residual branch at zero, through the scale of its last norm (Goyal et al. 2017, Section 5.1)."""

    def __post_init__(self) -> None:
        _require_choice("model.name", self.name, ModelName)
        _require(self.num_classes >= 0, "model.num_classes", "at least 0", self.num_classes)

    @property
    def family(self) -> Family:
        """Which of the paper's two designs: four stages for ImageNet, or three narrow ones for CIFAR."""
        return "cifar" if self.name in get_args(CifarName) else "imagenet"


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
        _require(self.global_batch_size >= 1, "optim.global_batch_size", "at least 1", self.global_batch_size)
        _require(0 < self.lr_per_256 < math.inf, "optim.lr_per_256", "positive and finite", self.lr_per_256)
        _require(0 <= self.momentum < 1, "optim.momentum", "in [0, 1)", self.momentum)
        _require(not self.nesterov or self.momentum > 0, "optim.nesterov", "false without momentum", self.nesterov)
        _require(0 <= self.weight_decay < math.inf, "optim.weight_decay", "finite, at least 0", self.weight_decay)
        _require(0 <= self.label_smoothing < 1, "optim.label_smoothing", "in [0, 1)", self.label_smoothing)
        _require(0 <= self.ema_decay < 1, "optim.ema_decay", "in [0, 1)", self.ema_decay)

    @property
    def peak_lr(self) -> float:
        """Learning rate at the end of the warm-up."""
        return self.lr_per_256 * self.global_batch_size / 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """How long to train, and the learning rate on the way as a factor of its peak."""

    unit: Unit = "epochs"
    """Of length, warmup and milestones."""
    length: float = 90.0
    warmup: float = 0.0
    """Linear climb from warmup_start_factor to the peak."""
    warmup_start_factor: float = 0.0
    shape: Shape = "cosine"
    milestones: tuple[float, ...] = ()
    """Where the shape "step" multiplies the rate by gamma."""
    gamma: float = 0.1
    end_factor: float = 0.0
    """Where "cosine" and "linear" arrive when the run ends."""

    def __post_init__(self) -> None:
        _require_choice("schedule.unit", self.unit, Unit)
        _require_choice("schedule.shape", self.shape, Shape)
        _require(0 < self.length < math.inf, "schedule.length", "positive and finite", self.length)
        _require(
            0 <= self.warmup < self.length, "schedule.warmup", f"in [0, {self.length}), its length apart", self.warmup
        )
        _require(
            0 <= self.warmup_start_factor <= 1,
            "schedule.warmup_start_factor",
            "in [0, 1]",
            self.warmup_start_factor,
        )
        _require(0 < self.gamma <= 1, "schedule.gamma", "in (0, 1]", self.gamma)
        _require(0 <= self.end_factor <= 1, "schedule.end_factor", "in [0, 1]", self.end_factor)
        self._check_milestones()
        self._check_whole_steps()

    def _check_milestones(self) -> None:
        given = bool(self.milestones)
        _require(
            given == (self.shape == "step"), "schedule.milestones", 'given for the shape "step" only', self.milestones
        )
        rises = all(low < high for low, high in pairwise((self.warmup, *self.milestones, self.length)))
        _require(
            rises or not given,
            "schedule.milestones",
            "strictly increasing, after warmup and before length",
            self.milestones,
        )

    def _check_whole_steps(self) -> None:
        if self.unit == "epochs":
            return
        for name, value in (("length", self.length), ("warmup", self.warmup)):
            _require(float(value).is_integer(), f"schedule.{name}", "a whole number of steps", value)
        _require(
            all(float(value).is_integer() for value in self.milestones),
            "schedule.milestones",
            "whole numbers of steps",
            self.milestones,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig:
    """How a worker computes; none of it changes what is computed, beyond rounding."""

    precision: Precision = "fp32"
    """bf16 = autocast: weights, norms' statistics and the loss stay fp32."""
    channels_last: bool = True
    compile: bool = False
    microbatch_size: int = 0
    """Most images in one forward pass of one worker; 0 = the worker's whole share of the step."""
    threads_per_worker: int = 1
    """Torch's threads within one operation, on CPU workers; 0 = torch's own default."""
    deterministic: bool = False
    """Refuse operations whose result may differ from run to run."""

    def __post_init__(self) -> None:
        _require_choice("compute.precision", self.precision, Precision)
        _require(self.microbatch_size >= 0, "compute.microbatch_size", "at least 0", self.microbatch_size)
        _require(self.threads_per_worker >= 0, "compute.threads_per_worker", "at least 0", self.threads_per_worker)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """What happens to uint8 images on the device, after the crop that the data tasks make."""

    flip: bool = False
    """Mirror each training image with probability one half."""
    mean: Rgb = IMAGENET_MEAN
    """Per channel, with images in [0, 1]."""
    std: Rgb = IMAGENET_STD
    """Per channel, with images in [0, 1]."""

    def __post_init__(self) -> None:
        rgb = 3
        _require(len(self.mean) == rgb and all(map(math.isfinite, self.mean)), "augment.mean", "3 numbers", self.mean)
        _require(
            len(self.std) == rgb and all(0 < value < math.inf for value in self.std),
            "augment.std",
            "3 positive numbers",
            self.std,
        )
