"""The two doors through which a training run acts on the world, and forms of them that stay in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from resnet_core.state import Tensors, TrainState


class Recorder(Protocol):
    """Takes the points of curves. On ranks that do not record, a NullRecorder."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...


class CheckpointSink(Protocol):
    """Keeps states. Called on every rank, at the same steps."""

    def save(self, state: TrainState, metrics: Mapping[str, float] | None) -> None:
        """Keep `state` as it is now; `metrics` are those of an evaluation at this very step, if there was one."""


class NullRecorder:
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Forget the point."""


class MemoryRecorder:
    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.points.append((step, dict(metrics)))


class MemorySink:
    def __init__(self) -> None:
        self.saved: list[tuple[int, Tensors, dict[str, float] | None]] = []

    def save(self, state: TrainState, metrics: Mapping[str, float] | None) -> None:
        self.saved.append((state.step, state.snapshot(), None if metrics is None else dict(metrics)))
