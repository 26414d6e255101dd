"""Training loop: the only place that decides the order of updates, records, evaluations and checkpoints.

A step updates the weights, then records, evaluates and saves if that is due. A run that resumes from a saved state
gives the same states and records as one without interruption: nothing except the state outlives a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from resnet_core.augment import step_generator
from resnet_core.batchnorm import reestimate_batchnorm
from resnet_core.compute import tune_convolutions
from resnet_core.plateau import EarlyStopping, HeldOut, Point
from resnet_core.schedule import LrSchedule
from resnet_core.state import Tensors, TrainState
from resnet_core.step import RankBatch, StepConfig, Sums, train_step


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervals:
    """Steps (counted from 1) at which the loop logs, evaluates or saves. The last step does all three."""

    total_steps: int
    log_every_steps: int
    eval_steps: frozenset[int] = frozenset()
    checkpoint_every_steps: int = 0  # 0 = at evaluations only

    def evaluates(self, step: int) -> bool:
        return step in self.eval_steps or step == self.total_steps

    def saves(self, step: int) -> bool:
        return self.evaluates(step) or _every(self.checkpoint_every_steps, step)

    def logs(self, step: int) -> bool:
        """Return whether `step` is logged: every save logs first, so no mean spans a save and no bad state is kept."""
        return self.saves(step) or _every(self.log_every_steps, step)


def _every(period: int, step: int) -> bool:
    return period > 0 and step % period == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Results of an evaluation."""

    metrics: Mapping[str, float]
    details: Mapping[str, Any] = field(default_factory=dict)
    """Other results that a checkpoint keeps, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """Everything that a run needs except its state and its data."""

    schedule: LrSchedule
    intervals: Intervals
    step: StepConfig
    recorder: Recorder
    sink: CheckpointSink
    evaluate: Callable[[TrainState], Evaluation]
    """Evaluates the held-out split; called on every rank."""
    held_out: HeldOut = "test"
    """Prefix of the evaluation's metrics: "validation", or "test" if the run has no validation split."""
    telemetry: Callable[[], Mapping[str, float]]
    """Returns measurements since its last call, such as images/s; called just after the host waited for the device."""
    seed: int
    rank: int = 0
    history: Sequence[Point] = ()
    """Records up to the state's step; a schedule may react to them."""
    before_step: Callable[[TrainState, int, torch.Generator], None] | None = None
    """Called before each update with the 0-based step and its generator, such as to set stochastic depth's rates."""
    should_stop: Callable[[int], bool] | None = None
    """Called on every rank with the number of steps done; returns whether to save and stop now, the same on all."""
    final_batches: Callable[[], Iterable[Tensor]] | None = None
    """Returns training images, uint8 B x H x W x C, for BatchNorm's exact statistics; called after the last update."""


def fit(state: TrainState, batches: Iterable[RankBatch], run: FitConfig) -> None:
    """Train from `state.step` to the last step, one rank batch per step.

    Stop earlier if `run.should_stop` says so, or after an evaluation at which early stopping ends the run. All ranks
    have the same evaluations, so they stop at the same step.

    Raises:
        FloatingPointError: a recorded value is not finite.
        RuntimeError: `batches` ends before the last step.
    """
    sums = Sums.zeros(state.device)
    config = run.schedule.config
    reaction = run.schedule.react(run.history)
    progress = EarlyStopping.of(run.history, config)
    if progress.ends(config):
        return

    def record(metrics: Mapping[str, float]) -> None:
        nonlocal reaction, progress
        _check_finite(state.step, metrics)
        run.recorder.log(state.step, metrics)
        reaction = run.schedule.react([(state.step, metrics)], reaction)
        progress = progress.after((state.step, metrics), config)

    for step, batch in zip(range(state.step, run.intervals.total_steps), batches, strict=False):
        lr = run.schedule(step, reaction)
        generator = step_generator(run.seed, step, run.rank, state.device)
        if run.before_step:
            run.before_step(state, step, generator)
        tune_convolutions(batch.uniform)  # mixed sizes make hundreds of shapes that never repeat: do not measure them
        sums += train_step(state, batch, lr=lr, config=run.step, generator=generator)
        state.step += 1
        stops = run.should_stop is not None and run.should_stop(state.step)
        if run.intervals.logs(state.step) or stops:
            record({**_named("train", sums.means()), "lr": lr, **run.telemetry()})
            sums = Sums.zeros(state.device)
        evaluation = None
        if run.intervals.evaluates(state.step):
            _set_exact_statistics(state, run)
            evaluation = run.evaluate(state)
            record(_named(run.held_out, evaluation.metrics))
        if run.intervals.saves(state.step) or stops:
            run.sink.save(state, evaluation)
        if stops or progress.ends(config):
            return
    if state.step < run.intervals.total_steps:
        raise RuntimeError(f"the training data ended at step {state.step} of {run.intervals.total_steps}")


def _set_exact_statistics(state: TrainState, run: FitConfig) -> None:
    """After the last update, compute BatchNorm's exact statistics for the evaluated model, if the run wants them."""
    if run.final_batches and state.step == run.intervals.total_steps:
        reestimate_batchnorm(state.scored_model, run.final_batches(), run.step)


def _named(kind: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{kind}/{name}": value for name, value in metrics.items()}


def _check_finite(step: int, metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {step}: lower optim.lr_per_256 or lengthen schedule.warmup"
            )


class Recorder(Protocol):
    """Receiver of metrics; ranks that do not record have a NullRecorder."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...


class CheckpointSink(Protocol):
    """Writer of checkpoints; called on every rank, at the same steps."""

    def save(self, state: TrainState, evaluation: Evaluation | None) -> None:
        """Save the current `state`, and the evaluation of this step if there was one."""


class NullRecorder:
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Ignore the metrics."""


class MemoryRecorder:
    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.points.append((step, dict(metrics)))


class MemorySink:
    def __init__(self) -> None:
        self.saved: list[tuple[int, Tensors, dict[str, float] | None]] = []

    def save(self, state: TrainState, evaluation: Evaluation | None) -> None:
        self.saved.append((state.step, state.snapshot(), None if evaluation is None else dict(evaluation.metrics)))
