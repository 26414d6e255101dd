"""Which metrics of a record become curves in MLflow, and under which names.

MLflow's page of a run draws every metric, in sections by prefix, in the order of their names. What people look for has
to sort first, and a curve that cannot move is in the way.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Curves:
    """How a run's records are shown; records, in memory and in checkpoints, keep their own names."""

    renamed: Mapping[str, str] = field(default_factory=dict)  # prefix -> prefix in MLflow
    from_first_value: tuple[str, ...] = ()  # prefixes in MLflow of metrics that are left out as long as they are zero
    left_out: tuple[str, ...] = ()  # endings of metrics that say nothing in this run

    def of(self, metrics: Mapping[str, float], drawn: Container[str]) -> dict[str, float]:
        """Return what MLflow is given of `metrics`; `drawn` are the names that it has curves of."""
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
