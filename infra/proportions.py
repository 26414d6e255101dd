"""Accuracy as a proportion of images: the interval of one model's, and the exact comparison of two on the same images.

wilson(942, 1000)                                  # 0.926 to 0.955
paired = Paired(wins=31, losses=12, count=1000)    # images that only the new model, only the old one, gets right
paired.difference, paired.p_value, paired.interval(), paired.lower_bound()
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds of what is estimated."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.2%} to {self.high:.2%}"


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a proportion: it keeps its confidence near 0 and 1, where most accuracies are.

    ValueError where there were no trials.
    """
    from scipy.stats import binomtest

    if trials < 1:
        raise ValueError("trials: at least 1")
    found = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


@dataclass(frozen=True, kw_only=True, slots=True)
class Paired:
    """How a new model answers against an old one on the same images; those where both are right or wrong cancel out."""

    wins: int  # images that only the new model gets right
    losses: int  # images that only the old model gets right
    count: int  # images in all

    @property
    def difference(self) -> float:
        """Accuracy of the new model less that of the old one, -1 to 1."""
        return (self.wins - self.losses) / self.count

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how often models that are equally good differ by this much or more."""
        from scipy.stats import binomtest

        discordant = self.wins + self.losses
        return float(binomtest(self.wins, discordant, 0.5).pvalue) if discordant else 1.0

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Of the difference, two-sided (Tango 1998, Statistics in Medicine 17: 891-908).

        The score interval that belongs to McNemar's test: unlike the one of Wald, or a bootstrap, it does not collapse
        where the models hardly ever differ.
        """
        level = (1 + confidence) / 2
        return Interval(_tango_low(self.wins, self.losses, self.count, level), self._upper(level))

    def lower_bound(self, confidence: float = CONFIDENCE) -> float:
        """Of the difference, one-sided."""
        return _tango_low(self.wins, self.losses, self.count, confidence)

    def _upper(self, level: float) -> float:
        return -_tango_low(self.losses, self.wins, self.count, level)


def _tango_low(wins: int, losses: int, count: int, level: float) -> float:
    """The lowest difference that the score test at this one-sided level does not reject."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf(level))

    def excess(difference: float) -> float:
        return wins - losses - count * difference - z * _score_deviation(wins, losses, count, difference)

    observed = (wins - losses) / count
    below = observed - 1e-9  # where no image is discordant, the observed difference itself is a root as well
    return float(brentq(excess, -1, below)) if below > -1 else -1.0


def _score_deviation(wins: int, losses: int, count: int, difference: float) -> float:
    """Standard deviation of wins - losses if the true difference were this, its nuisance at its likeliest (Tango)."""
    linear = -wins - losses + (2 * count - wins + losses) * difference
    constant = -losses * difference * (1 - difference)
    likeliest = (math.sqrt(max(0.0, linear**2 - 8 * count * constant)) - linear) / (4 * count)
    return math.sqrt(max(0.0, count * (2 * likeliest + difference * (1 - difference))))
