"""Who proposes a trial's values: pure functions of the space, the trial's number and the trials before it.

A searcher has no state: what it proposes after a restart is what it would have proposed without one. Ray's OptunaSearch
works with this Optuna too, but keeps its study in a pickle and loses what is not in it.
"""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.tuning.distributions import Distribution, rounded
from pipelines.tuning.ledger import Trial
from pipelines.tuning.space import Space

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution as Domain


def propose(space: Space, number: int, trials: Sequence[Trial]) -> dict[str, Any]:
    """Values of the trial of this number, after what `trials` have reported so far."""
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
    """By Optuna's tree-structured Parzen estimator, told of every trial as it stands.

    A trial that was stopped is told as pruned, with its curve: TPE ranks pruned trials by how far they came. One that
    still runs counts as a poor one, so that neighbours of it are not proposed at the same time.
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
    study.add_trials([_told(space, trial, asked) for trial in trials])
    found = study.ask(fixed_distributions=asked).params
    return {key: _value(space.space[key], value) for key, value in found.items()}


def _told(space: Space, trial: Trial, asked: dict[str, Domain]) -> optuna.trial.FrozenTrial:
    from optuna.trial import TrialState, create_trial

    several = len(space.searcher.objectives) > 1  # Optuna prunes for one only
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

    if distribution.options is not None:  # by their places: Optuna knows no lists
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
