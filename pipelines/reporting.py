"""A run that is a trial of a study: what it takes from the study, and what it reports to it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray.train

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from pipelines.sink import Sink
    from resnet_core.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class Reporting:
    """What a run takes from the study that it is a trial of."""

    once: str  # names its MLflow run among all of the experiment: a trial has one, whatever was killed when
    tags: Mapping[str, str]  # of its MLflow run
    callbacks: tuple[Any, ...] = ()  # of Ray Train's controller: one that hands reports on to Tune
    enter: Callable[[ActorHandle[Any]], bool] = lambda mailbox: False
    """Tell the study by which mailbox the run is stopped; whether the study is being stopped already."""
    data_cpus: float = math.inf  # most that the run's data tasks hold at once, so that no trial starves another


@dataclass(frozen=True, slots=True)
class ReportingSink:
    """`CheckpointSink` that reports every evaluation once its checkpoint is committed.

    A study may stop or pause a trial at any report, or let another go on from it: there is always the checkpoint of
    the very step. Ray Train's report waits for all ranks, so that none runs ahead of the one that writes.
    """

    sink: Sink
    eval_steps: Sequence[int]  # of all evaluations; where two fall together, the report's number grows by two

    def save(self, state: TrainState, metrics: Mapping[str, float] | None) -> None:
        self.sink.save(state, metrics)
        if metrics is None:
            return
        self.sink.wait()
        ray.train.report(numbered(self.eval_steps, state.step, metrics))


def numbered(eval_steps: Sequence[int], step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """The report of the evaluation at `step`, counted from 1: how many equal shares of the compute are spent."""
    return {"report": bisect_right(eval_steps, step), "step": step, **metrics}
