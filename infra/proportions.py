"""Accuracy as a proportion of images: the interval of one model, and the exact comparison of two on the same images.

    wilson(942, 1000)  # 0.926 to 0.955.
    paired = Paired(wins=31, losses=12, count=1000)  # wins: only the new model is right; losses: only the old.
    paired.difference, paired.p_value, paired.interval(), paired.lower_bound()

The interval and the lower bound are those of the difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """The bounds of an estimate."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.2%} to {self.high:.2%}"


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Return Wilson's score interval of a proportion; it stays accurate near 0 and 1, where most accuracies are.

    Raises:
        ValueError: there were no trials.
    """
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)  # SciPy has it, too, but takes each run a second to import
    share, weight = successes / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == trials else centre + half)


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """A new model against an old one on the same images; images that both get right, or both wrong, cancel out."""

    wins: int  # images that only the new model gets right
    losses: int  # images that only the old model gets right
    count: int  # images in all

    @property
    def difference(self) -> float:
        """Accuracy of the new model minus that of the old one, -1 to 1."""
        return (self.wins - self.losses) / self.count

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how often equally good models differ by this much or more."""
        from scipy.stats import binomtest

        discordant = self.wins + self.losses
        return float(binomtest(self.wins, discordant, 0.5).pvalue) if discordant else 1.0

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Return the two-sided interval of the difference (Tango 1998, Statistics in Medicine 17: 891-908).

        This is the score interval that belongs to McNemar's test. Unlike Wald's interval or a bootstrap, it does not
        collapse when the models hardly ever differ.
        """
        level = (1 + confidence) / 2
        return Interval(_tango_low(self.wins, self.losses, self.count, level), self._upper(level))

    def lower_bound(self, confidence: float = CONFIDENCE) -> float:
        """Return the one-sided lower bound of the difference."""
        return _tango_low(self.wins, self.losses, self.count, confidence)

    def _upper(self, level: float) -> float:
        return -_tango_low(self.losses, self.wins, self.count, level)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resampled:
    """The difference of a measure between a new model and an old one, with its lower bound from resamples."""

    measure: str
    difference: float  # new minus old, -1 to 1
    bound: float  # one-sided, at `CONFIDENCE`
    count: int  # images


def _tango_low(wins: int, losses: int, count: int, level: float) -> float:
    """Return the lowest difference that the score test at this one-sided level does not reject."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf(level))

    def excess(difference: float) -> float:
        return wins - losses - count * difference - z * _score_deviation(wins, losses, count, difference)

    observed = (wins - losses) / count
    below = observed - 1e-9  # without discordant images, the observed difference is a root, too
    return float(brentq(excess, -1, below)) if below > -1 else -1.0


def _score_deviation(wins: int, losses: int, count: int, difference: float) -> float:
    """Return the standard deviation of wins - losses at this true difference, the nuisance at its likeliest (Tango)."""
    linear = -wins - losses + (2 * count - wins + losses) * difference
    constant = -losses * difference * (1 - difference)
    likeliest = (math.sqrt(max(0.0, linear**2 - 8 * count * constant)) - linear) / (4 * count)
    return math.sqrt(max(0.0, count * (2 * likeliest + difference * (1 - difference))))
