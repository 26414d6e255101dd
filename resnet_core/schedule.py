"""Durations in steps, and the learning rate: a pure function of the step and of the records before it.

A run of S_total samples has S = max(1, floor(S_total / global_batch)) steps; the last step also takes the remainder.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from resnet_core.config import OptimConfig, ScheduleConfig, Unit
from resnet_core.plateau import Plateau, Point


def to_steps(value: float, unit: Unit, samples_per_epoch: int, global_batch_size: int) -> int:
    """Return the number of whole steps within `value` epochs or steps."""
    if unit == "steps":
        return int(value)
    return round(value * samples_per_epoch) // global_batch_size


def total_samples(config: ScheduleConfig, samples_per_epoch: int, global_batch_size: int) -> int:
    """Return the number of samples that the run consumes, repetitions counted."""
    if config.unit == "steps":
        return int(config.length) * global_batch_size
    return max(1, round(config.length * samples_per_epoch))


def total_steps(config: ScheduleConfig, samples_per_epoch: int, global_batch_size: int) -> int:
    return max(1, to_steps(config.length, config.unit, samples_per_epoch, global_batch_size))


def epoch_end_step(epoch: int, samples_per_epoch: int, global_batch_size: int, total_steps: int) -> int:
    """Return the number of steps that lie wholly within the first `epoch` epochs (counted from 1).

    The last epoch of a run ends with the run. An epoch smaller than a batch ends with the first step.
    """
    return min(total_steps, max(1, epoch * samples_per_epoch // global_batch_size))


def ramp(step: int, ramp_steps: int) -> float:
    """Return a factor that rises linearly from 0 at step 0 (0-based) to 1 at `ramp_steps`; always 1 without a ramp."""
    return min(1.0, step / ramp_steps) if ramp_steps else 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LrSchedule:
    """Learning rate of every step of one run; all durations are in steps."""

    config: ScheduleConfig
    peak_lr: float
    total_steps: int
    warmup_steps: int = 0
    milestone_steps: tuple[int, ...] = ()
    point_steps: tuple[int, ...] = ()

    @classmethod
    def build(cls, schedule: ScheduleConfig, optim: OptimConfig, samples_per_epoch: int) -> LrSchedule:
        def steps(value: float) -> int:
            return to_steps(value, schedule.unit, samples_per_epoch, optim.global_batch_size)

        total = total_steps(schedule, samples_per_epoch, optim.global_batch_size)
        return cls(
            config=schedule,
            peak_lr=optim.peak_lr,
            total_steps=total,
            # a run so short that it is all warm-up would otherwise never see its peak
            warmup_steps=min(steps(schedule.warmup), total - 1),
            milestone_steps=tuple(map(steps, schedule.milestones)),
            point_steps=tuple(map(steps, schedule.points)),
        )

    def react(self, points: Iterable[Point], reaction: Plateau | None = None) -> Plateau:
        """Return the state of the plateau after a run's records, in order; `reaction` is the state before them."""
        reaction = reaction or Plateau()
        for point in points:
            reaction = reaction.after(point, self.config, self.warmup_steps)
        return reaction

    def __call__(self, step: int, reaction: Plateau | None = None) -> float:
        """Return the learning rate of the 0-based `step`; `reaction` summarizes the records before it."""
        return self.peak_lr * self.factor(step, reaction or Plateau())

    def factor(self, step: int, reaction: Plateau) -> float:
        """Return the factor of the peak: from warmup_start_factor at 0 up to 1 at warmup_steps, then by the shape.

        A shape that falls to end_factor reaches it at total_steps, one past the last step, as in torch's schedulers.
        """
        if self.config.warmup_until_error and not reaction.warm:
            return self.config.warmup_start_factor
        return self._warmup(step) if step < self.warmup_steps else self._shape(step, reaction)

    def _warmup(self, step: int) -> float:
        start, steps = self.config.warmup_start_factor, self.warmup_steps
        if self.config.shape == "one_cycle":
            return start + (1 - start) * (1 - _cosine(step / steps))
        match self.config.warmup_shape:
            case "linear":
                return start + (1 - start) * step / steps
            case "constant":
                return start
            case "exponential":
                return float(start ** (1 - step / steps))

    def _shape(self, step: int, reaction: Plateau) -> float:
        config = self.config
        match config.shape:
            case "constant":
                return 1.0
            case "step":
                return float(config.gamma ** bisect_right(self.milestone_steps, step))
            case "piecewise":
                return _interpolate(step, self.point_steps, config.factors)
            case "plateau":
                return max(float(config.gamma**reaction.falls), config.end_factor)
            case "linear" | "poly" | "cosine" | "one_cycle":
                return config.end_factor + (1 - config.end_factor) * self._remaining(step, config.shape)
            case _:
                assert_never(config.shape)

    def _remaining(self, step: int, shape: Literal["linear", "poly", "cosine", "one_cycle"]) -> float:
        """Return the remaining part of the decay: 1 at the end of the warm-up, 0 at total_steps."""
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        match shape:
            case "linear":
                return 1 - progress
            case "poly":
                return float((1 - progress) ** self.config.power)
            case "cosine" | "one_cycle":
                return _cosine(progress)


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _interpolate(step: int, points: Sequence[int], factors: Sequence[float]) -> float:
    right = bisect_right(points, step)
    if right in (0, len(points)):
        return factors[max(0, right - 1)]
    left = right - 1
    fraction = (step - points[left]) / (points[right] - points[left])
    return factors[left] + fraction * (factors[right] - factors[left])
