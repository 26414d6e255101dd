"""Selection and names of the metrics that become curves in MLflow.

MLflow's page of a run draws every metric, in sections by prefix, in the order of their names. So important metrics must
sort first, and a curve that cannot change only distracts.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveNames:
    """Names of a run's metrics in MLflow; records, in memory and in checkpoints, keep their own names."""

    renamed: Mapping[str, str] = field(default_factory=dict)  # prefix -> prefix in MLflow
    from_first_value: tuple[str, ...] = ()  # prefixes in MLflow of metrics that are left out while they are zero
    left_out: tuple[str, ...] = ()  # endings of metrics that mean nothing in this run

    def of(self, metrics: Mapping[str, float], drawn: Container[str]) -> dict[str, float]:
        """Return the metrics that MLflow gets, by their names there; `drawn` are the names that have curves already."""
        named = {self._name(key): value for key, value in metrics.items() if not key.endswith(self.left_out or ("\0",))}
        return {
            key: value
            for key, value in named.items()
            if value or key in drawn or not key.startswith(self.from_first_value or ("\0",))
        }

    def _name(self, key: str) -> str:
        for old, new in self.renamed.items():
            if key.startswith(old):
                return new + key.removeprefix(old)
        return key
