"""Reactions to a run's records: the part of the learning rate that is not known before training, and early stopping.

A reaction is computed from the records alone. A resumed run has all of them, so it gets the same rate as a run
without interruption.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from resnet_core.config import ScheduleConfig

Point = tuple[int, Mapping[str, float]]
"""A step, counted from 1, and the metrics that were recorded after it."""

TRAIN_ACCURACY = "train/accuracy"
HeldOut = Literal["validation", "test"]
"""The split that a run is evaluated on while it trains."""


def held_out(metrics: Mapping[str, float], name: str) -> float | None:
    """Return the metric `name` of the split that was evaluated; None if `metrics` has no evaluation."""
    return metrics.get(f"validation/{name}", metrics.get(f"test/{name}"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plateau:
    """State that summarizes the records so far."""

    warm: bool = False
    """The recorded training error has been below schedule.warmup_until_error."""
    best_error: float = math.inf
    """The lowest error on the held-out split that counted as progress."""
    stale: int = 0
    """Evaluations in a row without progress."""
    falls: int = 0
    """Number of times that the rate was multiplied by gamma because there was no progress."""

    def after(self, point: Point, config: ScheduleConfig, warmup_steps: int) -> Plateau:
        """Return the state after one more record; evaluations during the warm-up do not count."""
        step, metrics = point
        reaction = self
        if TRAIN_ACCURACY in metrics and 1 - metrics[TRAIN_ACCURACY] < config.warmup_until_error:
            reaction = replace(reaction, warm=True)
        warmed_up = step >= warmup_steps and (reaction.warm or not config.warmup_until_error)
        accuracy = held_out(metrics, "accuracy")
        if accuracy is not None and warmed_up:
            reaction = reaction._evaluated(1 - accuracy, config)
        return reaction

    def _evaluated(self, error: float, config: ScheduleConfig) -> Plateau:
        """Return the state after an evaluation, as ReduceLROnPlateau (mode "min", absolute threshold, no cooldown)."""
        if error < self.best_error - config.threshold:
            return replace(self, best_error=error, stale=0)
        if self.stale == config.patience:
            return replace(self, stale=0, falls=self.falls + 1)
        return replace(self, stale=self.stale + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStopping:
    """Progress of a run's evaluations, by which it may end before its last step (`schedule.early_stopping_*`)."""

    best: float = -math.inf
    """The best value that counted as progress; a loss with its sign changed."""
    best_step: int = 0
    """Step of that evaluation."""
    stale: int = 0
    """Evaluations in a row without progress since then."""

    @classmethod
    def of(cls, points: Iterable[Point], config: ScheduleConfig) -> EarlyStopping:
        """Return the state after a run's records, in order."""
        state = cls()
        for point in points:
            state = state.after(point, config)
        return state

    def after(self, point: Point, config: ScheduleConfig) -> EarlyStopping:
        """Return the state after one more record; records without an evaluation do not count."""
        step, metrics = point
        value = held_out(metrics, config.early_stopping_metric)
        if value is None or not config.early_stopping_patience:
            return self
        value = -value if config.early_stopping_metric == "loss" else value
        if value > self.best + config.early_stopping_min_delta:
            return EarlyStopping(best=value, best_step=step)
        return replace(self, stale=self.stale + 1)

    @property
    def best_value(self) -> float:
        """Return the best value as it was recorded: a loss is positive."""
        return abs(self.best)

    def ends(self, config: ScheduleConfig) -> bool:
        """Return whether the run ends now."""
        return 0 < config.early_stopping_patience <= self.stale
