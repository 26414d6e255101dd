"""Intervals and the paired test, against published values and other ways to compute them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from infra.proportions import Interval, Paired, wilson


def tango_by_quartic(wins: int, losses: int, count: int, z: float) -> tuple[float, float]:
    """Bounds as roots of a polynomial: Yang, Sun and Hardin (2013), Statistics in Medicine 32: 1336-1342."""
    g, n, d, s = z * z, count, wins - losses, wins + losses
    m0 = n**2 * (n / g + 1) ** 2
    m1 = -n * d * (n / g + 1) * (4 * n / g + 1)
    m2 = 2 * n * d**2 * (3 * n / g + 2) / g - n**2 * (s / g + 1)
    m3 = n * d * (2 * s / g + 1) - d**3 * (4 * n / g + 1) / g
    m4 = d**2 * (d**2 / g - s) / g
    roots = np.roots([m0, m1, m2, m3, m4])
    real = roots[np.abs(roots.imag) < 1e-6].real
    return float(real.min()), float(real.max())


def test_wilson() -> None:
    """Newcombe (1998), Statistics in Medicine 17: 857-872, Table I, method 3."""
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        found = wilson(right, count)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert wilson(29, 29).high == 1.0
    for right, count, confidence in itertools.product((0, 1, 7, 20), (20, 21, 50_000), (0.5, 0.95)):
        found, expected = wilson(right, count, confidence), binomtest(right, count).proportion_ci(confidence, "wilson")
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    with pytest.raises(ValueError, match="trials must be at least 1, got 0"):
        wilson(0, 0)


def test_tango() -> None:
    """Airway reactivity of 21 children: Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33: 2850-2875."""
    found = Paired(wins=1, losses=7, count=21).interval()
    assert (round(found.low, 3), round(found.high, 3)) == (-0.517, -0.026)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 3000))
def test_tango_is_the_root_of_the_quartic(wins: int, losses: int, same: int) -> None:
    count = wins + losses + same + 5
    if wins == losses:
        return  # a double root at 0 in the polynomial
    found = Paired(wins=wins, losses=losses, count=count).interval()
    expected = tango_by_quartic(wins, losses, count, 1.959963984540054)
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-5)


def test_models_that_never_differ() -> None:
    paired = Paired(wins=0, losses=0, count=1000)
    z = 1.6448536269514722
    assert (paired.difference, paired.p_value) == (0.0, 1.0)
    assert paired.lower_bound() == pytest.approx(-(z**2) / (1000 + z**2))
    assert Paired(wins=0, losses=30, count=30).interval().low == -1.0
    assert Paired(wins=30, losses=0, count=30).interval().high == 1.0


def test_mcnemar_is_the_binomial_tail() -> None:
    tail = sum(math.comb(12, wins) for wins in range(3)) / 2**12
    assert Paired(wins=2, losses=10, count=50).p_value == pytest.approx(2 * tail)
    assert Paired(wins=10, losses=2, count=5000).p_value == pytest.approx(2 * tail)


def test_the_lower_bound_keeps_its_confidence() -> None:
    """Of 2,000 comparisons of equal models, 5 % have a lower bound above the truth, give or take chance."""
    draws = np.random.default_rng(0).multinomial(1000, [0.03, 0.03, 0.94], size=2000)
    above = [Paired(wins=int(wins), losses=int(losses), count=1000).lower_bound() > 0 for wins, losses, _ in draws]
    assert 0.035 < np.mean(above) < 0.065


def test_what_is_printed() -> None:
    assert str(Interval(0.90441, 0.9157)) == "90.44% to 91.57%"
