"""Connection between a trial's run and its study: settings for the run, and reports to the study."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray.train

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from pipelines.training.checkpoint_writer import CheckpointWriter
    from resnet_core.loop import Evaluation
    from resnet_core.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class Reporting:
    """Settings that a study gives to the run of a trial."""

    once: str  # unique name of its MLflow run in the experiment: a trial that was killed and resumed has one run
    tags: Mapping[str, str]  # of the MLflow run
    callbacks: tuple[Any, ...] = ()  # of Ray Train's controller: one passes reports to Tune
    enter: Callable[[ActorHandle[Any]], bool] = lambda queue: False
    """Gives the study the queue by which it stops the run; returns whether the study is stopping already."""
    data_cpus: float = math.inf  # most CPUs of the run's data tasks at once, so that no trial starves another


@dataclass(frozen=True, slots=True)
class ReportingWriter:
    """`CheckpointSink` that reports every evaluation once its checkpoint is committed.

    A study may stop or pause a trial at any report, or start another trial from it, so the report's step needs a
    checkpoint. Ray Train's report waits for all ranks, so no rank runs ahead of rank 0, which writes.
    """

    writer: CheckpointWriter
    eval_steps: Sequence[int]  # of all evaluations; where two coincide, the report's number grows by two

    def save(self, state: TrainState, evaluation: Evaluation | None) -> None:
        self.writer.save(state, evaluation)
        if evaluation is None:
            return
        self.writer.wait()
        ray.train.report(numbered(self.eval_steps, state.step, evaluation.metrics))


def numbered(eval_steps: Sequence[int], step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the report of the evaluation at `step`. `report` counts from 1: the equal parts of the compute spent."""
    return {"report": bisect_right(eval_steps, step), "step": step, **metrics}
