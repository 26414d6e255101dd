"""Metrics of one step, which go from the training loop to the tracker and into checkpoints."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricPoint:
    """Metrics of one step. The steps of each key only grow."""

    step: int
    time_ms: int  # time of measurement since the epoch: a point sent twice is the same point
    metrics: dict[str, float]  # "kind/name" -> value; the kinds are train, test, system

    def to_json(self) -> str:
        """Return one line of JSON without values that are not finite: neither JSON nor a chart can show them."""
        metrics = {key: value for key, value in self.metrics.items() if math.isfinite(value)}
        return json.dumps({"step": self.step, "time_ms": self.time_ms, "metrics": metrics})

    @classmethod
    def from_json(cls, line: str) -> Self:
        return cls(**json.loads(line))
