"""How long to train and how fast: the recipe's section `schedule`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from resnet_core.config.check import require, require_choice

Unit = Literal["epochs", "steps"]
Shape = Literal["cosine", "linear", "step", "constant", "poly", "piecewise", "one_cycle", "plateau"]
WarmupShape = Literal["linear", "constant", "exponential"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """How long to train, and the learning rate on the way as a factor of its peak."""

    unit: Unit = "epochs"
    """Unit of length, warmup, milestones, points and drop_path_ramp."""
    length: float = 90.0
    """Length of the training, in schedule.unit: epochs by default."""
    warmup: float = 0.0
    """Length of the climb from warmup_start_factor to the peak, in schedule.unit."""
    warmup_start_factor: float = 0.0
    """Where the warm-up begins, as a share of the peak rate."""
    warmup_shape: WarmupShape = "linear"
    """How the rate climbs: constant = stays at warmup_start_factor until the warm-up ends; exponential = by a constant
    ratio."""
    warmup_until_error: float = 0.0
    """In place of `warmup`: stay at warmup_start_factor until the recorded training error is below this (0.8 for the
    paper's ResNet-110, Section 4.2); 0 = off."""
    shape: Shape = "cosine"
    """Learning rate after the warm-up, as a factor of its peak."""
    milestones: tuple[float, ...] = ()
    """Times at which the shape "step" multiplies the rate by gamma, in schedule.unit."""
    gamma: float = 0.1
    """Factor of the rate, for "step" and "plateau"."""
    end_factor: float = 0.0
    """Factor at the end of the run, for "cosine", "linear", "poly" and "one_cycle"; the least factor of "plateau"."""
    power: float = 1.0
    """Power of the share of the run that is left, for "poly"; 1 is "linear"."""
    points: tuple[float, ...] = ()
    """Times of the factors of "piecewise", in schedule.unit; straight in between, level outside; no warm-up besides."""
    factors: tuple[float, ...] = ()
    """Factors of the peak rate at `points`, for "piecewise"."""
    patience: int = 10
    """Evaluations in a row without progress before "plateau" multiplies the rate by gamma."""
    threshold: float = 1e-4
    """Progress, for "plateau": the test error falls by more than this share of all images."""
    drop_path_ramp: float = 0.0
    """Time over which stochastic depth climbs linearly to its rates, in schedule.unit; 0 = full from the first step."""

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

    def _check_ranges(self) -> None:
        require(0 < self.length < math.inf, "schedule.length", "positive and finite", self.length)
        require(
            0 <= self.warmup < self.length, "schedule.warmup", f"in [0, {self.length}), its length apart", self.warmup
        )
        for name in ("warmup_start_factor", "end_factor"):
            require(0 <= getattr(self, name) <= 1, f"schedule.{name}", "in [0, 1]", getattr(self, name))
        for name in ("warmup_until_error", "threshold"):
            require(0 <= getattr(self, name) < 1, f"schedule.{name}", "in [0, 1)", getattr(self, name))
        require(0 < self.gamma <= 1, "schedule.gamma", "in (0, 1]", self.gamma)
        require(0 < self.power < math.inf, "schedule.power", "positive and finite", self.power)
        require(self.patience >= 0, "schedule.patience", "at least 0", self.patience)
        require(
            0 <= self.drop_path_ramp <= self.length,
            "schedule.drop_path_ramp",
            f"in [0, {self.length}], its length",
            self.drop_path_ramp,
        )

    def _check_warmup(self) -> None:
        until_error = self.warmup_until_error > 0
        needs_start = until_error or (self.warmup > 0 and self.warmup_shape == "exponential")
        require(
            self.warmup_start_factor > 0 or not needs_start,
            "schedule.warmup_start_factor",
            "positive for an exponential warm-up, and for one until an error",
            self.warmup_start_factor,
        )
        has_own_rise = self.shape == "piecewise" or until_error
        require(
            not (self.warmup and has_own_rise),
            "schedule.warmup",
            '0 for the shape "piecewise", and beside warmup_until_error',
            self.warmup,
        )
        if self.shape == "one_cycle":
            require(self.warmup > 0, "schedule.warmup", 'positive for the shape "one_cycle"', self.warmup)
            require(
                self.warmup_shape == "linear",
                "schedule.warmup_shape",
                'left out for the shape "one_cycle", which rises by a cosine',
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
