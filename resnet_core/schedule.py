"""Durations become steps here, once; the learning rate is a pure function of the step.

A run of S_total samples has S = max(1, floor(S_total / global_batch)) steps; the last one also takes the remainder.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from resnet_core.config import OptimConfig, ScheduleConfig, Unit


def to_steps(value: float, unit: Unit, samples_per_epoch: int, global_batch_size: int) -> int:
    """Whole steps within `value` epochs or steps."""
    if unit == "steps":
        return int(value)
    return round(value * samples_per_epoch) // global_batch_size


def total_samples(config: ScheduleConfig, samples_per_epoch: int, global_batch_size: int) -> int:
    """Samples the run consumes, repetitions counted."""
    if config.unit == "steps":
        return int(config.length) * global_batch_size
    return max(1, round(config.length * samples_per_epoch))


def total_steps(config: ScheduleConfig, samples_per_epoch: int, global_batch_size: int) -> int:
    return max(1, to_steps(config.length, config.unit, samples_per_epoch, global_batch_size))


def epoch_end_step(epoch: int, samples_per_epoch: int, global_batch_size: int, total_steps: int) -> int:
    """Steps done when the first `epoch` epochs (counted from 1) are: those that lie wholly within them.

    The last epoch of a run ends with the run, and an epoch smaller than a batch ends with the first step.
    """
    return min(total_steps, max(1, epoch * samples_per_epoch // global_batch_size))


def lr_factor(
    step: int, config: ScheduleConfig, *, warmup_steps: int, milestone_steps: tuple[int, ...], total_steps: int
) -> float:
    """Factor of the peak rate at the 0-based `step`: warmup_start_factor at 0, 1 at warmup_steps, then the shape.

    "cosine" and "linear" reach end_factor at total_steps, one past the last step, as torch's schedulers do.
    """
    if step < warmup_steps:
        return config.warmup_start_factor + (1 - config.warmup_start_factor) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    match config.shape:
        case "constant":
            return 1.0
        case "step":
            return float(config.gamma ** bisect_right(milestone_steps, step))
        case "linear":
            remaining = 1 - progress
        case "cosine":
            remaining = (1 + math.cos(math.pi * progress)) / 2
    return config.end_factor + (1 - config.end_factor) * remaining


@dataclass(frozen=True, kw_only=True, slots=True)
class LrSchedule:
    """The learning rate of every step of one run, all durations already in steps."""

    config: ScheduleConfig
    peak_lr: float
    warmup_steps: int
    milestone_steps: tuple[int, ...]
    total_steps: int

    @classmethod
    def build(cls, schedule: ScheduleConfig, optim: OptimConfig, samples_per_epoch: int) -> LrSchedule:
        batch = optim.global_batch_size
        total = total_steps(schedule, samples_per_epoch, batch)
        warmup = to_steps(schedule.warmup, schedule.unit, samples_per_epoch, batch)
        return cls(
            config=schedule,
            peak_lr=optim.peak_lr,
            # a run so short that it is all warm-up would otherwise never see its peak
            warmup_steps=min(warmup, total - 1),
            milestone_steps=tuple(
                to_steps(value, schedule.unit, samples_per_epoch, batch) for value in schedule.milestones
            ),
            total_steps=total,
        )

    def __call__(self, step: int) -> float:
        """Learning rate of the 0-based `step`."""
        factor = lr_factor(
            step,
            self.config,
            warmup_steps=self.warmup_steps,
            milestone_steps=self.milestone_steps,
            total_steps=self.total_steps,
        )
        return self.peak_lr * factor
