"""Values that a setting may take: a range, a list, or named settings that change together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Value = Any
"""A TOML value; for `settings`, the name of an option."""
_KINDS = ("uniform", "log_uniform", "int_uniform", "choice", "settings")
_DIGITS = 6  # significant digits of a drawn value


class Distribution(BaseModel):
    """Values of one key; exactly one of the first five fields is given.

    uniform = [low, high]       log_uniform = [low, high]       int_uniform = [low, high]
    choice = [a, b, …]          settings = {NAME = {"section.key" = value, …}, …}
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    uniform: tuple[float, float] | None = None
    """Range: [low, high]."""
    log_uniform: tuple[float, float] | None = None
    """Range in which the logarithm is uniform: [low, high], above 0."""
    int_uniform: tuple[int, int] | None = None
    """Range of integers, both ends included: [low, high]."""
    choice: Annotated[tuple[Value, ...], Field(min_length=1)] | None = None
    """List of values."""
    settings: Annotated[dict[str, dict[str, Value]], Field(min_length=1)] | None = None
    """Settings that change together, by name: {NAME = {"section.key" = value}}."""
    points: Annotated[int, Field(ge=0)] = 0
    """Number of grid points in a range, evenly spaced from end to end; by a constant ratio for log_uniform."""

    @property
    def kind(self) -> str:
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def options(self) -> tuple[Value, ...] | None:
        """Return the values of a list, or the names of settings; None for a range."""
        return tuple(self.settings) if self.settings else self.choice

    @property
    def bounds(self) -> tuple[float, float]:
        """Return (low, high) of a range."""
        found: tuple[float, float] = getattr(self, self.kind)
        return found

    def at(self, share: float) -> Value:
        """Return the quantile at `share` in [0, 1); a uniformly drawn share gives a random draw."""
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
        """Return all values of a list, or `points` values of a range."""
        if self.options is not None:
            return self.options
        if self.kind == "int_uniform" and not self.points:
            return tuple(range(int(self.bounds[0]), int(self.bounds[1]) + 1))
        last = max(1, self.points - 1)
        return tuple(dict.fromkeys(self._end(place / last) for place in range(self.points)))

    def extremes(self) -> tuple[Value, ...]:
        """Return all values of a list, or both ends of a range: if those can be trained, so can the values between."""
        return self.options if self.options is not None else (self._end(0.0), self._end(1.0))

    def _end(self, share: float) -> Value:
        """Return the value at `share` in [0, 1], both ends included."""
        low, high = self.bounds
        if self.kind == "int_uniform":
            return round(low + share * (high - low))
        return rounded(low * (high / low) ** share if self.kind == "log_uniform" else low + share * (high - low))

    def overrides(self, key: str, value: Value) -> Mapping[str, Value]:
        """Return the recipe's keys that this value of `key` sets, with their values."""
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
            raise ValueError(f"points is for a range only: a grid takes all values of {self.kind}")
        return self


def rounded(value: float) -> float:
    """Round a drawn value to the digits that tables and recipe files show."""
    return float(f"{value:.{_DIGITS}g}")
