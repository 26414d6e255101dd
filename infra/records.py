"""What was measured at one step, as it travels from the training loop to the tracker and into checkpoints."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Metrics of one step. Among records of one key the steps grow."""

    step: int
    time_ms: int  # since the epoch, when it was measured: a point sent twice is the same point
    metrics: dict[str, float]  # "kind/name" -> value; the kinds are train, test, system

    def to_json(self) -> str:
        """One line. Values that are not finite have no JSON, nor a place on a chart, and are left out."""
        metrics = {key: value for key, value in self.metrics.items() if math.isfinite(value)}
        return json.dumps({"step": self.step, "time_ms": self.time_ms, "metrics": metrics})

    @classmethod
    def from_json(cls, line: str) -> Self:
        return cls(**json.loads(line))
