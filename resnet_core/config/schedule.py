"""How long to train and how fast: the recipe's section `schedule`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from resnet_core.config.check import require, require_choice

Unit = Literal["epochs", "steps"]
Shape = Literal["cosine", "linear", "step", "constant"]


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
        require_choice("schedule.unit", self.unit, Unit)
        require_choice("schedule.shape", self.shape, Shape)
        require(0 < self.length < math.inf, "schedule.length", "positive and finite", self.length)
        require(
            0 <= self.warmup < self.length, "schedule.warmup", f"in [0, {self.length}), its length apart", self.warmup
        )
        require(
            0 <= self.warmup_start_factor <= 1,
            "schedule.warmup_start_factor",
            "in [0, 1]",
            self.warmup_start_factor,
        )
        require(0 < self.gamma <= 1, "schedule.gamma", "in (0, 1]", self.gamma)
        require(0 <= self.end_factor <= 1, "schedule.end_factor", "in [0, 1]", self.end_factor)
        self._check_milestones()
        self._check_whole_steps()

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

    def _check_whole_steps(self) -> None:
        if self.unit == "epochs":
            return
        for name, value in (("length", self.length), ("warmup", self.warmup)):
            require(float(value).is_integer(), f"schedule.{name}", "a whole number of steps", value)
        require(
            all(float(value).is_integer() for value in self.milestones),
            "schedule.milestones",
            "whole numbers of steps",
            self.milestones,
        )
