"""Ray Tune's schedulers by their names in a space. Their unit of time is the report: an equal share of compute.

A deep network reports as often as a shallow one of the same cost, so no trial is stopped for being slow.

Population-based training needs no checkpoints of Tune: every trial's run folder has its weights at every report. A
trial that continues from another trial's weights gets a `Change` in the ledger and starts there (`trial.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from pipelines.tuning.distributions import Distribution
from pipelines.tuning.trial_recipes import StudyPlan
from pipelines.tuning.trials import Change

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

METRIC, TIME = "accuracy", "report"
_NEVER: Any = float("inf")  # in reports
NUMBER = "number"  # key in a Tune trial's config, next to its values: the trial's number in the ledger
Decide = Callable[[int, int, Callable[[], Change]], Change]
"""(trial, report, draw) -> the change that the ledger has for this report, else a drawn one."""
_GOAL: dict[str, Any] = {"time_attr": TIME, "metric": METRIC, "mode": "max"}


def build_scheduler(plan: StudyPlan, decide: Decide) -> TrialScheduler:
    """Return the scheduler of the space; `decide` records the changes that a population makes."""
    table, reports = plan.space.scheduler, plan.space.budget.reports
    changing = {key: plan.space.space[key] for key in plan.changeable()}
    match table.name:
        case "none":
            return FIFOScheduler()
        case "asha":
            return AsyncHyperBandScheduler(
                **_GOAL, max_t=reports, grace_period=table.grace, reduction_factor=table.eta, stop_last_trials=False
            )
        case "hyperband":
            return HyperBandScheduler(**_GOAL, max_t=reports, reduction_factor=table.eta)
        case "median":
            # stop trials from report `grace` on; while few results are known, never pause one for another that waits
            return MedianStoppingRule(**_GOAL, grace_period=table.grace, min_time_slice=_NEVER)
        case "pbt":
            return _Population(
                **_GOAL,
                decide=decide,
                changing=changing,
                perturbation_interval=table.interval,
                hyperparam_mutations={key: _domain(distribution) for key, distribution in changing.items()},
                quantile_fraction=table.quantile,
                resample_probability=table.resample,
                synch=True,
                log_config=False,
            )
        case "pb2":
            ranges = {key: distribution for key, distribution in changing.items() if distribution.options is None}
            return _bandit_population()(
                **_GOAL,
                decide=decide,
                changing=ranges,
                perturbation_interval=table.interval,
                hyperparam_bounds={key: list(distribution.bounds) for key, distribution in ranges.items()},
                quantile_fraction=table.quantile,
                synch=True,
                log_config=False,
            )


class _Forks(PopulationBasedTraining):
    """Exchange step of a synchronous population that uses the ledger in place of Tune's checkpoints."""

    def __init__(self, *, decide: Decide, changing: dict[str, Distribution], **settings: Any) -> None:
        super().__init__(**settings)
        self._decide, self._changing = decide, changing

    def _checkpoint_or_exploit(
        self, trial: TuneTrial, tune_controller: Any, upper_quantile: list[TuneTrial], lower_quantile: list[TuneTrial]
    ) -> None:
        """Change a trial of the lower quantile; Ray calls this for each trial once all have made the same report."""
        if trial not in lower_quantile:
            return
        number, report = trial.config[NUMBER], int(self._trial_state[trial].last_train_time)

        def draw() -> Change:
            donor = random.Random(f"{number}/{report}").choice(upper_quantile)
            explored, _ = self._get_new_config(trial, donor)
            values = {key: self._within(key, value) for key, value in explored.items() if key != NUMBER}
            last: Any = self._trial_state[donor].last_result
            return Change(report=report, donor=donor.config[NUMBER], step=last["step"], values=values)

        change = self._decide(number, report, draw)
        trial.set_config({NUMBER: number, **change.values})
        self._num_perturbations += 1

    def _within(self, key: str, value: Any) -> Any:
        """Clip a value to the range of its key: Ray multiplies by 0.8 or 1.2, beyond the range's ends too."""
        distribution = self._changing.get(key)
        if distribution is None or distribution.options is not None:
            return value
        low, high = distribution.bounds
        return type(distribution.at(0.0))(min(high, max(low, value)))


class _Population(_Forks):
    pass


def _bandit_population() -> Callable[..., TrialScheduler]:
    """Return the class of PB2 populations."""
    from ray.tune.schedulers.pb2 import PB2  # imports scikit-learn, which takes 2.4 s of CPU

    class BanditPopulation(_Forks, PB2):
        pass

    return BanditPopulation


def _domain(distribution: Distribution) -> Any:
    """Return what Ray draws new values from; in a list, Ray may also move to a neighbour."""
    if distribution.options is not None:
        return list(distribution.options)
    low, high = distribution.bounds
    match distribution.kind:
        case "int_uniform":
            return tune.randint(int(low), int(high) + 1)
        case "log_uniform":
            return tune.loguniform(low, high)
        case _:
            return tune.uniform(low, high)
