"""`resnet_core.ports.Recorder` of a worker: a point goes into the checkpoints, to Prometheus, and to the driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from infra.records import Record
from pipelines.mailbox import Recorded
from pipelines.monitoring import RunMetrics


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecorder:
    """Keeps the history for the checkpoints, and tells of each point."""

    history: list[Record]
    shown: RunMetrics
    tell: Callable[[Recorded], None]
    """The driver, from rank 0 alone."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        record = Record(step=step, time_ms=time.time_ns() // 1_000_000, metrics=dict(metrics))
        self.history.append(record)
        self.shown.point(metrics)
        self.tell(Recorded(record=record))
