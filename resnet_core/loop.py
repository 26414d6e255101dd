"""The training loop: the only place that knows in what order things happen.

Each step: update, then record, evaluate and save where they are due. Running it again from a saved state gives what
one unbroken run gives, states and records alike, because nothing but the state lives longer than a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_core.augment import step_generator
from resnet_core.batchnorm import reestimate_batchnorm
from resnet_core.compute import tune_convolutions
from resnet_core.ports import CheckpointSink, Recorder
from resnet_core.reaction import HeldOut, Point
from resnet_core.schedule import LrSchedule
from resnet_core.state import TrainState
from resnet_core.step import Share, StepConfig, Sums, train_step


@dataclass(frozen=True, kw_only=True, slots=True)
class Cadence:
    """At which steps, counted from 1, the loop does more than an update. The last step has all of it."""

    total_steps: int
    log_every_steps: int
    eval_steps: frozenset[int] = frozenset()
    checkpoint_every_steps: int = 0  # 0 = at evaluations only

    def evaluates(self, step: int) -> bool:
        return step in self.eval_steps or step == self.total_steps

    def saves(self, step: int) -> bool:
        return self.evaluates(step) or _every(self.checkpoint_every_steps, step)

    def logs(self, step: int) -> bool:
        """Also before every save, so that a mean never spans one, and a broken state is never kept."""
        return self.saves(step) or _every(self.log_every_steps, step)


def _every(period: int, step: int) -> bool:
    return period > 0 and step % period == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run needs besides its state and its data."""

    schedule: LrSchedule
    cadence: Cadence
    step: StepConfig
    recorder: Recorder
    sink: CheckpointSink
    evaluate: Callable[[TrainState], Mapping[str, float]]
    """Metrics of the held-out split; called on every rank."""
    held_out: HeldOut = "test"
    """Prefix of those metrics: "validation", or "test" where a run has no validation split."""
    telemetry: Callable[[], Mapping[str, float]]
    """What the caller measures, such as images/s, since it was last asked; the device has just been waited for."""
    seed: int
    rank: int = 0
    history: Sequence[Point] = ()
    """What was recorded until the state's step: a schedule may react to it."""
    before_step: Callable[[TrainState, int, torch.Generator], None] | None = None
    """Called with the 0-based step and its generator before each update, e.g. to set the rates of stochastic depth."""
    leave: Callable[[int], bool] | None = None
    """Called on every rank with the number of steps done: whether to save and go before the last one, all alike."""
    final_batches: Callable[[], Iterable[Tensor]] | None = None
    """Training images, uint8 B x H x W x C, for BatchNorm's exact statistics; asked for after the last update."""


def fit(state: TrainState, shares: Iterable[Share], run: Run) -> None:
    """Train from `state.step` to the last step, one share a step, or to the one that `run.leave` picks.

    FloatingPointError if a recorded value is not finite; RuntimeError if the shares end too early.
    """
    sums = Sums.zeros(state.device)
    reaction = run.schedule.react(run.history)

    def record(metrics: Mapping[str, float]) -> None:
        nonlocal reaction
        _check_finite(state.step, metrics)
        run.recorder.log(state.step, metrics)
        reaction = run.schedule.react([(state.step, metrics)], reaction)

    for step, share in zip(range(state.step, run.cadence.total_steps), shares, strict=False):
        lr = run.schedule(step, reaction)
        generator = step_generator(run.seed, step, run.rank, state.device)
        if run.before_step:
            run.before_step(state, step, generator)
        tune_convolutions(share.uniform)  # else cuDNN measures for hundreds of shapes that never come again
        sums += train_step(state, share, lr=lr, config=run.step, generator=generator)
        state.step += 1
        leaves = run.leave is not None and run.leave(state.step)
        if run.cadence.logs(state.step) or leaves:
            record({**_named("train", sums.means()), "lr": lr, **run.telemetry()})
            sums = Sums.zeros(state.device)
        metrics = None
        if run.cadence.evaluates(state.step):
            _settle_statistics(state, run)
            metrics = run.evaluate(state)
            record(_named(run.held_out, metrics))
        if run.cadence.saves(state.step) or leaves:
            run.sink.save(state, metrics)
        if leaves:
            return
    if state.step < run.cadence.total_steps:
        raise RuntimeError(f"the training data ended at step {state.step} of {run.cadence.total_steps}")


def _settle_statistics(state: TrainState, run: Run) -> None:
    """After the last update, BatchNorm's exact statistics for the model that is scored and kept, if wanted."""
    if run.final_batches and state.step == run.cadence.total_steps:
        reestimate_batchnorm(state.scored_model, run.final_batches(), run.step)


def _named(kind: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{kind}/{name}": value for name, value in metrics.items()}


def _check_finite(step: int, metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name} is {value} at step {step}: lower optim.lr_per_256 or lengthen schedule.warmup"
            )
