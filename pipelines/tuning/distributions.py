"""What a setting may be: a range, a list, or a list of settings that change together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Value = Any
"""A TOML value; for `settings`, the name of an option."""
_KINDS = ("uniform", "log_uniform", "int_uniform", "choice", "settings")
_DIGITS = 6  # significant, of what is drawn


class Distribution(BaseModel):
    """Exactly one of the first five.

    uniform = [low, high]       log_uniform = [low, high]       int_uniform = [low, high], both included
    choice = [a, b, …]          settings = {NAME = {"section.key" = value, …}, …}
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    uniform: tuple[float, float] | None = None
    """Range: [low, high]."""
    log_uniform: tuple[float, float] | None = None
    """Range whose logarithm is uniform: [low, high], above 0."""
    int_uniform: tuple[int, int] | None = None
    """Range of integers, both ends included: [low, high]."""
    choice: Annotated[tuple[Value, ...], Field(min_length=1)] | None = None
    """List of values."""
    settings: Annotated[dict[str, dict[str, Value]], Field(min_length=1)] | None = None
    """Settings that change together, by name: {NAME = {"section.key" = value}}."""
    points: Annotated[int, Field(ge=0)] = 0
    """Points of a range in a grid, evenly from end to end; by a constant ratio for log_uniform."""

    @property
    def kind(self) -> str:
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def options(self) -> tuple[Value, ...] | None:
        """What a list offers; None for a range."""
        return tuple(self.settings) if self.settings else self.choice

    @property
    def bounds(self) -> tuple[float, float]:
        """Of a range."""
        found: tuple[float, float] = getattr(self, self.kind)
        return found

    def at(self, share: float) -> Value:
        """The value that this share of all, in [0, 1), lies below: a uniform share makes a draw of it."""
        if self.options is not None:
            return self.options[int(share * len(self.options))]
        low, high = self.bounds
        match self.kind:
            case "int_uniform":
                return int(low) + int(share * (high - low + 1))
            case "log_uniform":
                return rounded(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
            case _:
                return rounded(low + share * (high - low))

    def grid(self) -> tuple[Value, ...]:
        """All of a list, and `points` of a range."""
        if self.options is not None:
            return self.options
        if self.kind == "int_uniform" and not self.points:
            return tuple(range(int(self.bounds[0]), int(self.bounds[1]) + 1))
        last = max(1, self.points - 1)
        return tuple(dict.fromkeys(self._end(place / last) for place in range(self.points)))

    def extremes(self) -> tuple[Value, ...]:
        """All of a list, and the ends of a range: where these can be trained with, so can what is between."""
        return self.options if self.options is not None else (self._end(0.0), self._end(1.0))

    def _end(self, share: float) -> Value:
        """As `at`, both ends included."""
        low, high = self.bounds
        if self.kind == "int_uniform":
            return round(low + share * (high - low))
        return rounded(low * (high / low) ** share if self.kind == "log_uniform" else low + share * (high - low))

    def overrides(self, key: str, value: Value) -> Mapping[str, Value]:
        """The recipe's keys that this value of `key` sets."""
        return self.settings[value] if self.settings else {key: value}

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(_KINDS)}: got {', '.join(given) or 'none'}")
        if self.options is None:
            low, high = self.bounds
            if not (low < high and math.isfinite(high - low)):
                raise ValueError(f"{self.kind} must be [low, high] with low below high: got {list(self.bounds)}")
            if self.kind == "log_uniform" and low <= 0:
                raise ValueError(f"log_uniform must be above 0: got {list(self.bounds)}")
        elif self.points:
            raise ValueError(f"points are of a range: a grid has all of {self.kind}")
        return self


def rounded(value: float) -> float:
    """What is drawn, as tables show it and recipe files say it."""
    return float(f"{value:.{_DIGITS}g}")
