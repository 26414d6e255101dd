"""Sections `schedule` and `curriculum` of a recipe: length of the training, learning rate and phases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from resnet_core.config.check import require, require_choice
from resnet_core.config.variants import ModelName

Unit = Literal["epochs", "steps"]
Shape = Literal["cosine", "linear", "step", "constant", "poly", "piecewise", "one_cycle", "plateau"]
WarmupShape = Literal["linear", "constant", "exponential"]
WatchedMetric = Literal[
    "accuracy", "loss", "top5_accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Length of the training, and the learning rate over time as a factor of its peak."""

    unit: Unit = "epochs"
    """Unit of length, warmup, milestones, points and drop_path_ramp."""
    length: float = 90.0
    """Length of the training, in schedule.unit: epochs by default."""
    warmup: float = 0.0
    """Length of the rise from warmup_start_factor to the peak, in schedule.unit."""
    warmup_start_factor: float = 0.0
    """Rate at the start of the warm-up, as a fraction of the peak rate."""
    warmup_shape: WarmupShape = "linear"
    """Shape of the rise: constant = stays at warmup_start_factor until the warm-up ends; exponential = grows by a
    constant ratio per step."""
    warmup_until_error: float = 0.0
    """Training error that ends the warm-up: the rate stays at warmup_start_factor until the recorded error is lower
    (0.8 for the paper's ResNet-110, Section 4.2). Use it instead of `warmup`; 0 = off."""
    shape: Shape = "cosine"
    """Learning rate after the warm-up, as a factor of its peak."""
    milestones: tuple[float, ...] = ()
    """Times at which "step" multiplies the rate by gamma, in schedule.unit."""
    gamma: float = 0.1
    """Factor by which "step" and "plateau" multiply the rate."""
    end_factor: float = 0.0
    """Factor at the end of the run, for "cosine", "linear", "poly" and "one_cycle"; the lowest factor of "plateau"."""
    power: float = 1.0
    """Power of the remaining fraction of the run, for "poly"; 1 = "linear"."""
    points: tuple[float, ...] = ()
    """Times of the factors of "piecewise", in schedule.unit; the rate is linear between two points and constant
    outside them. Not with a warm-up."""
    factors: tuple[float, ...] = ()
    """Factors of the peak rate at `points`, for "piecewise"."""
    patience: int = 10
    """Evaluations in a row without progress that "plateau" accepts before it multiplies the rate by gamma."""
    threshold: float = 1e-4
    """Progress, for "plateau": the test error (a fraction of all images) falls by more than this."""
    early_stopping_patience: int = 0
    """Evaluations in a row without progress after which the run ends and keeps its best checkpoint; 0 = off."""
    early_stopping_metric: WatchedMetric = "accuracy"
    """Metric of the evaluations that early stopping watches; the loss must fall, the others rise."""
    early_stopping_min_delta: float = 0.0
    """Progress, for early stopping: the metric improves by more than this."""
    drop_path_ramp: float = 0.0
    """Time over which stochastic depth grows linearly to its rates, in schedule.unit; 0 = full from the first step."""

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_ranges()
        self._check_warmup()
        self._check_milestones()
        self._check_points()
        self._check_whole_steps()

    def _check_choices(self) -> None:
        require_choice("schedule.unit", self.unit, Unit)
        require_choice("schedule.shape", self.shape, Shape)
        require_choice("schedule.warmup_shape", self.warmup_shape, WarmupShape)
        require_choice("schedule.early_stopping_metric", self.early_stopping_metric, WatchedMetric)

    def _check_ranges(self) -> None:
        require(0 < self.length < math.inf, "schedule.length", "positive and finite", self.length)
        require(
            0 <= self.warmup < self.length,
            "schedule.warmup",
            f"in [0, {self.length}), below schedule.length",
            self.warmup,
        )
        for name in ("warmup_start_factor", "end_factor"):
            require(0 <= getattr(self, name) <= 1, f"schedule.{name}", "in [0, 1]", getattr(self, name))
        for name in ("warmup_until_error", "threshold"):
            require(0 <= getattr(self, name) < 1, f"schedule.{name}", "in [0, 1)", getattr(self, name))
        require(0 < self.gamma <= 1, "schedule.gamma", "in (0, 1]", self.gamma)
        require(0 < self.power < math.inf, "schedule.power", "positive and finite", self.power)
        for name in ("patience", "early_stopping_patience"):
            require(getattr(self, name) >= 0, f"schedule.{name}", "at least 0", getattr(self, name))
        delta = self.early_stopping_min_delta
        require(0 <= delta < math.inf, "schedule.early_stopping_min_delta", "finite, at least 0", delta)
        require(
            0 <= self.drop_path_ramp <= self.length,
            "schedule.drop_path_ramp",
            f"in [0, {self.length}], up to schedule.length",
            self.drop_path_ramp,
        )

    def _check_warmup(self) -> None:
        until_error = self.warmup_until_error > 0
        needs_start = until_error or (self.warmup > 0 and self.warmup_shape == "exponential")
        require(
            self.warmup_start_factor > 0 or not needs_start,
            "schedule.warmup_start_factor",
            "positive for an exponential warm-up and with warmup_until_error",
            self.warmup_start_factor,
        )
        has_own_rise = self.shape == "piecewise" or until_error
        require(
            not (self.warmup and has_own_rise),
            "schedule.warmup",
            '0 for the shape "piecewise" and with warmup_until_error',
            self.warmup,
        )
        if self.shape == "one_cycle":
            require(self.warmup > 0, "schedule.warmup", 'positive for the shape "one_cycle"', self.warmup)
            require(
                self.warmup_shape == "linear",
                "schedule.warmup_shape",
                'left at "linear" for the shape "one_cycle", which always rises by a cosine',
                self.warmup_shape,
            )
        require(
            not (until_error and self.shape == "piecewise"),
            "schedule.warmup_until_error",
            '0 for the shape "piecewise"',
            self.warmup_until_error,
        )

    def _check_milestones(self) -> None:
        given = bool(self.milestones)
        require(
            given == (self.shape == "step"), "schedule.milestones", 'given for the shape "step" only', self.milestones
        )
        rises = all(low < high for low, high in pairwise((self.warmup, *self.milestones, self.length)))
        require(
            rises or not given,
            "schedule.milestones",
            "strictly increasing, after warmup and before length",
            self.milestones,
        )

    def _check_points(self) -> None:
        given = bool(self.points)
        require(
            given == (self.shape == "piecewise"), "schedule.points", 'given for the shape "piecewise" only', self.points
        )
        rises = all(low < high for low, high in pairwise(self.points))
        within = all(0 <= point <= self.length for point in self.points)
        require(
            rises and within, "schedule.points", f"strictly increasing, from 0 to length ({self.length})", self.points
        )
        require(len(self.factors) == len(self.points), "schedule.factors", "as many as schedule.points", self.factors)
        require(all(0 <= factor <= 1 for factor in self.factors), "schedule.factors", "in [0, 1]", self.factors)

    def _check_whole_steps(self) -> None:
        if self.unit == "epochs":
            return
        for name in ("length", "warmup", "drop_path_ramp"):
            value = getattr(self, name)
            require(float(value).is_integer(), f"schedule.{name}", "a whole number of steps", value)
        for name in ("milestones", "points"):
            values = getattr(self, name)
            whole = all(float(value).is_integer() for value in values)
            require(whole, f"schedule.{name}", "whole numbers of steps", values)


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumConfig:
    """Phases of a run, each with its image size and its network; an empty list changes nothing over time."""

    until: tuple[float, ...] = ()
    """End of each phase except the last, in schedule.unit."""
    image_size: tuple[int, ...] = ()
    """Side of the training images in each phase, pixels; evaluation uses data.image_size."""
    model: tuple[ModelName, ...] = ()
    """Network of each phase, each deeper than the one before, model.name last; new blocks start as the identity."""

    def __post_init__(self) -> None:
        phases = len(self.until) + 1
        rises = all(low < high for low, high in pairwise((0.0, *self.until, math.inf)))
        require(rises, "curriculum.until", "positive and strictly increasing", self.until)
        for name in ("image_size", "model"):
            given = getattr(self, name)
            require(len(given) in (0, phases), f"curriculum.{name}", f"empty or one for each of {phases} phases", given)
        require(all(size >= 1 for size in self.image_size), "curriculum.image_size", "positive", self.image_size)
        several = bool(self.image_size or self.model)
        require(
            several or not self.until,
            "curriculum.until",
            "empty unless curriculum.image_size or curriculum.model is given",
            self.until,
        )
