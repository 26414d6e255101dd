"""What a run's records tell its schedule: the part of a learning rate that cannot be known before training.

A fold over the records, so that a resumed run, which has them all, is where the unbroken one was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from resnet_core.config import ScheduleConfig

Point = tuple[int, Mapping[str, float]]
"""A step, counted from 1, and what was recorded after it."""

TRAIN_ACCURACY = "train/accuracy"
HeldOut = Literal["validation", "test"]
"""The split that a run is evaluated on while it trains."""


def held_out(metrics: Mapping[str, float], name: str) -> float | None:
    """Return the metric `name` of the split that was evaluated; None where `metrics` hold no evaluation."""
    return metrics.get(f"validation/{name}", metrics.get(f"test/{name}"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reaction:
    """What the records so far have led to."""

    warm: bool = False
    """The recorded training error has been below schedule.warmup_until_error."""
    best_error: float = math.inf
    """The lowest error on the held-out split that counted as progress."""
    stale: int = 0
    """Evaluations in a row without progress."""
    falls: int = 0
    """How often the rate has been multiplied by gamma for want of progress."""

    def after(self, point: Point, config: ScheduleConfig, warmup_steps: int) -> Reaction:
        """With one more record. Evaluations within the warm-up say nothing of a plateau."""
        step, metrics = point
        reaction = self
        if TRAIN_ACCURACY in metrics and 1 - metrics[TRAIN_ACCURACY] < config.warmup_until_error:
            reaction = replace(reaction, warm=True)
        warmed_up = step >= warmup_steps and (reaction.warm or not config.warmup_until_error)
        accuracy = held_out(metrics, "accuracy")
        if accuracy is not None and warmed_up:
            reaction = reaction._evaluated(1 - accuracy, config)
        return reaction

    def _evaluated(self, error: float, config: ScheduleConfig) -> Reaction:
        """As torch's ReduceLROnPlateau, in mode "min", with an absolute threshold and no cooldown."""
        if error < self.best_error - config.threshold:
            return replace(self, best_error=error, stale=0)
        if self.stale == config.patience:
            return replace(self, stale=0, falls=self.falls + 1)
        return replace(self, stale=self.stale + 1)
