"""The trials of a study as Tune asks for them: those that were interrupted, then those that the searcher proposes.

Tune's own wrapper of searchers refuses populations, and gives trials ids that nobody knows after a restart.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.search.search_algorithm import SearchAlgorithm

from pipelines.tuning.journal import SYNCHRONOUS, tune_id
from pipelines.tuning.ledger import Ledger, Trial
from pipelines.tuning.plan import Plan
from pipelines.tuning.schedulers import NUMBER
from pipelines.tuning.searchers import propose


class PlannedTrials(SearchAlgorithm):
    """Exactly as many trials as are planned, restarts included."""

    def __init__(self, plan: Plan, ledger: Ledger, samples_per_epoch: int) -> None:
        self._plan, self._ledger, self._samples = plan, ledger, samples_per_epoch
        again = ledger.trials if plan.space.scheduler.name in SYNCHRONOUS else ledger.interrupted
        self._again = deque(again)
        self._spec: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles what it is given; of the study there is nothing in its files."""
        return {}

    @property
    def total_samples(self) -> int:
        return self._plan.space.trials

    def add_configurations(self, experiments: Any) -> None:
        """Tune's way of telling which trainable it is."""
        (experiment,) = experiments
        self._spec = experiment.spec

    def is_finished(self) -> bool:
        return not self._again and len(self._ledger) >= self._plan.space.trials

    def next_trial(self) -> Any:
        if self.is_finished():
            return None
        trial = self._again.popleft() if self._again else self._new()
        config = {NUMBER: trial.number, **trial.values}
        spec = {**self._spec, "config": config}
        return _create_trial_from_spec(
            spec, _make_parser(), evaluated_params=trial.values, trial_id=tune_id(trial.number)
        )

    def _new(self) -> Trial:
        values = propose(self._plan.space, len(self._ledger), self._ledger.trials)
        return self._ledger.add(values, self._plan.compute(values, self._samples))
