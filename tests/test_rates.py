"""Rates and the least of several estimates: exact limits at every level, and how often they hold."""

import numpy as np
import pytest
from scipy import stats

from tda.evaluation.intervals import mean_interval
from tda.evaluation.rates import least, rate


def test_a_rate_has_the_limits_of_clopper_and_pearson_at_every_level():
    for count, trials in ((0, 12), (3, 40), (12, 12), (199, 200)):
        found = rate(count, trials, 0.95)
        for alpha in (0.05, 0.0071, 1e-6):
            wanted = stats.binomtest(count, trials).proportion_ci(1 - alpha, method="exact")
            np.testing.assert_allclose(found.limits(0.95, alpha), wanted, atol=1e-12)
        assert (found.low, found.high) == found.limits(0.95, 1 - 0.95) and found.value == count / trials


def test_a_shifted_rate_stays_where_a_rate_can_be():
    """18 of 18 found, less a chance of .02: never above .98."""
    found = rate(18, 18, 0.95, shift=-0.02)
    assert (found.value, found.high) == (0.98, 0.98)
    low, high = found.limits(0.95, 0.0025)
    assert (low, high) == (pytest.approx(0.00125 ** (1 / 18) - 0.02), pytest.approx(0.98))


def test_a_paired_difference_takes_half_the_error_for_each_share():
    found = rate(5, 40, 0.95, lost=2)
    won, lost = (stats.binomtest(count, 40).proportion_ci(0.975, method="exact") for count in (5, 2))
    assert found.value == pytest.approx(3 / 40)
    assert (found.low, found.high) == (pytest.approx(won.low - lost.high), pytest.approx(won.high - lost.low))
    nothing = rate(0, 18, 0.95, lost=0)
    assert nothing.low == -nothing.high == pytest.approx(0.0125 ** (1 / 18) - 1), "all alike is no proof of equality"


@pytest.mark.parametrize("given", [(1, 0), (-1, 5), (6, 5), (3, 5, 0.95, 3), (0, 5, 0.95, -1)])
def test_counts_that_cannot_be(given):
    with pytest.raises(ValueError, match="between 0 and all"):
        rate(*given[:2], 0.95, *given[3:])


def test_each_side_of_a_rate_errs_at_most_half_of_alpha():
    for share, trials in ((0.03, 60), (0.5, 25), (0.93, 40)):
        counts = np.arange(trials + 1)
        chance = stats.binom.pmf(counts, trials, share)
        limits = np.array([rate(count, trials, 0.9).limits(0.9, 0.1) for count in counts])
        assert chance[limits[:, 0] > share].sum() <= 0.05 and chance[limits[:, 1] < share].sum() <= 0.05


def test_both_sides_of_a_least_hold_whichever_it_is():
    """Ten differences, nine of them tied for the least: the low holds without a correction, the high with it."""
    rng, truth, missed = np.random.default_rng(0), np.array([0.0] * 9 + [0.5]), np.zeros(2)
    for _ in range(400):
        draws = truth + rng.normal(size=(12, 1)) + rng.normal(size=(12, 10))
        found = least({str(i): mean_interval(draws[:, i], level=0.9) for i in range(10)}, 0.9)
        missed += found.low > 0, found.high < 0
    assert (missed / 400 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)).all(), missed
    with pytest.raises(ValueError, match="at least one"):
        least({}, 0.95)
