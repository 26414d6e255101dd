"""A run that is a trial of a study: what it takes from the study, and what it reports to it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.sink import Sink
    from resnet_core.state import TrainState


@dataclass(frozen=True, kw_only=True, slots=True)
class Reporting:
    """What a run takes from the study that it is a trial of."""

    once: str  # names its MLflow run among all of the experiment: a trial has one, whatever was killed when
    tags: Mapping[str, str]  # of its MLflow run
    callbacks: tuple[Any, ...] = ()  # of Ray Train's controller: one that hands reports on to Tune


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportingSink:
    """`CheckpointSink` that reports every evaluation once its checkpoint is committed.

    A study may stop or pause a trial at any report, or let another go on from it: there is always the checkpoint of
    the very step. Ray Train's report waits for all ranks, so that none runs ahead of the one that writes.
    """

    sink: Sink
    eval_steps: Sequence[int]  # of all evaluations, ascending; where two fall together, the number grows by two

    def save(self, state: TrainState, metrics: Mapping[str, float] | None) -> None:
        self.sink.save(state, metrics)
        if metrics is None:
            return
        self.sink.wait()
        report = {"report": bisect_right(self.eval_steps, state.step), "step": state.step, **metrics}
        if self.sink.recipe.run.num_workers == 0:  # local mode, which calls nobody back: this is Tune's own process
            from ray import tune

            tune.report(report)
        else:
            ray.train.report(report)


def reporting(sink: Sink, samples_per_epoch: int, total_steps: int) -> ReportingSink:
    """The sink of a run that reports."""
    from pipelines.assembly import eval_at_steps

    return ReportingSink(sink=sink, eval_steps=[*eval_at_steps(sink.recipe, samples_per_epoch), total_steps])
