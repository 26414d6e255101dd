"""Searchers, which propose a trial's values: pure functions of the space, the trial's number and earlier trials.

A searcher has no state, so it proposes the same values with and without a restart. Ray's OptunaSearch also works with
this Optuna, but it keeps its study in a pickle and loses everything that is not in it.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray.tune.search.search_algorithm import SearchAlgorithm

from pipelines.ray_internals.tune import create_trial
from pipelines.tuning.distributions import Distribution, rounded
from pipelines.tuning.recording_scheduler import SYNCHRONOUS, tune_id
from pipelines.tuning.schedulers import NUMBER
from pipelines.tuning.space import Space
from pipelines.tuning.trial_recipes import StudyPlan
from pipelines.tuning.trials import Trial, Trials

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution as Domain


def propose(space: Space, number: int, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the values of the trial of this number, given what `trials` have reported so far."""
    match space.searcher.name:
        case "grid":
            points = itertools.product(*(distribution.grid() for distribution in space.space.values()))
            return dict(zip(space.space, next(itertools.islice(points, number, None)), strict=True))
        case "random":
            return _drawn(space, number)
        case "tpe":
            return _modelled(space, number, trials)


def _drawn(space: Space, number: int) -> dict[str, Any]:
    dice = random.Random(f"{space.searcher.seed}/{number}")
    return {key: distribution.at(dice.random()) for key, distribution in space.space.items()}


def _modelled(space: Space, number: int, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return values from Optuna's tree-structured Parzen estimator (TPE), which gets the current state of every trial.

    A stopped trial counts as pruned, with its curve: TPE ranks pruned trials by their last report. A running trial
    counts as a poor one, so that TPE does not propose its neighbours at the same time.
    """
    table = space.searcher
    if number < table.startup:
        return _drawn(space, number)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = table.seed * 1_000_003 + number
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # multivariate and constant_liar
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=table.startup, multivariate=True, constant_liar=True
        )
    up, down = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    directions = [up if objective == "accuracy" else down for objective in table.objectives]
    study = optuna.create_study(sampler=sampler, directions=directions)
    asked = {key: _domain(distribution) for key, distribution in space.space.items()}
    study.add_trials([_frozen_trial(space, trial, asked) for trial in trials])
    found = study.ask(fixed_distributions=asked).params
    return {key: _value(space.space[key], value) for key, value in found.items()}


def _frozen_trial(space: Space, trial: Trial, asked: dict[str, Domain]) -> optuna.trial.FrozenTrial:
    from optuna.trial import TrialState, create_trial

    several = len(space.searcher.objectives) > 1  # Optuna prunes with one objective only
    state = {
        "running": TrialState.RUNNING,
        "failed": TrialState.FAIL,
        "finished": TrialState.COMPLETE,
        "stopped": TrialState.COMPLETE if several else TrialState.PRUNED,
    }[trial.state]
    scores = {"accuracy": trial.accuracy, "compute": trial.spent(space.budget.reports)}
    return create_trial(
        state=state,
        values=[scores[each] for each in space.searcher.objectives] if state == TrialState.COMPLETE else None,
        params={key: _parameter(space.space[key], trial.values[key]) for key in asked},
        distributions=asked,
        intermediate_values={} if several else {each.report: each.accuracy for each in trial.reports},
    )


def _domain(distribution: Distribution) -> Domain:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if distribution.options is not None:  # indices of the options: Optuna has no categories that are lists
        return CategoricalDistribution(tuple(range(len(distribution.options))))
    low, high = distribution.bounds
    if distribution.kind == "int_uniform":
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=distribution.kind == "log_uniform")


def _parameter(distribution: Distribution, value: Any) -> Any:
    return value if distribution.options is None else distribution.options.index(value)


def _value(distribution: Distribution, parameter: Any) -> Any:
    if distribution.options is not None:
        return distribution.options[parameter]
    return rounded(parameter) if isinstance(parameter, float) else parameter


class PlannedTrials(SearchAlgorithm):
    """Search algorithm of Tune that yields exactly the planned trials, also over restarts."""

    def __init__(self, plan: StudyPlan, ledger: Trials, samples_per_epoch: int) -> None:
        self._plan, self._ledger, self._samples = plan, ledger, samples_per_epoch
        repeated = ledger.trials if plan.space.scheduler.name in SYNCHRONOUS else ledger.interrupted
        self._repeated = deque(repeated)
        self._spec: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to pickle: Tune pickles its arguments, and its files must hold nothing of the study."""
        return {}

    @property
    def total_samples(self) -> int:
        return self._plan.space.trials

    def add_configurations(self, experiments: Any) -> None:
        """Keep the spec of the one experiment, which names the trainable; called by Tune."""
        (experiment,) = experiments
        self._spec = experiment.spec

    def is_finished(self) -> bool:
        return not self._repeated and len(self._ledger) >= self._plan.space.trials

    def next_trial(self) -> Any:
        if self.is_finished():
            return None
        trial = self._repeated.popleft() if self._repeated else self._new()
        config = {NUMBER: trial.number, **trial.values}
        spec = {**self._spec, "config": config}
        return create_trial(spec, trial.values, tune_id(trial.number))

    def _new(self) -> Trial:
        values = propose(self._plan.space, len(self._ledger), self._ledger.trials)
        return self._ledger.add(values, self._plan.compute(values, self._samples))
