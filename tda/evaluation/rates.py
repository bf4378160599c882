"""Intervals whose limits are no multiples of a t quantile: of rates, and of the least of several estimates.

Each knows its limits at any level, as :class:`tda.evaluation.intervals.Interval` does. Sources: Clopper & Pearson, "The
use of confidence or fiducial limits illustrated in the case of the binomial", 1934; Berger, "Multiparameter hypothesis
testing and acceptance sampling", 1982 (intersection-union tests).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from scipy import stats

from .intervals import Interval


@dataclass(frozen=True)
class Rate(Interval):
    """What :func:`rate` returns: a share of trials, or a difference of two, with the counts that it comes from."""

    successes: float = float("nan")
    trials: float = float("nan")
    lost: float = float("nan")

    def limits(self, level: float, alpha: float) -> tuple[float, float]:
        """(low, high) at level 1 - ``alpha``, from the counts; ``level`` plays no part."""
        if math.isnan(self.lost):
            (low, high), value = _clopper_pearson(self.successes, self.trials, alpha), self.successes / self.trials
        else:
            won, lost = (_clopper_pearson(count, self.trials, alpha / 2) for count in (self.successes, self.lost))
            low, high, value = won[0] - lost[1], won[1] - lost[0], (self.successes - self.lost) / self.trials
        return low + (self.value - value), high + (self.value - value)


@dataclass(frozen=True)
class Least(Interval):
    """What :func:`least` returns: the smallest of several differences, with all of them by name."""

    parts: dict[str, Interval] = field(default_factory=dict)

    def limits(self, level: float, alpha: float) -> tuple[float, float]:
        """(low, high) at level 1 - ``alpha``: the smallest low; the smallest high, at ``alpha`` over their number."""
        low = min(part.limits(level, alpha)[0] for part in self.parts.values())
        return low, min(part.limits(level, alpha / len(self.parts))[1] for part in self.parts.values())


def rate(successes: float, trials: int, level: float, lost: float | None = None, shift: float = 0.0) -> Rate:
    """Share of ``trials`` with the exact binomial interval of Clopper and Pearson; each side errs with (1 - level) / 2.

    low solves P(X >= successes) = (1 - level) / 2, high P(X <= successes) = (1 - level) / 2. A fraction of a success
    (the chance of one, where ties are broken at random) counts by the same beta quantiles.
    lost     for a paired difference: the value is (successes - lost) / trials, with the limits of both shares at half
             the error each.
    shift    added to the value and both limits, for instance minus the share that chance would have.
    Errors   ValueError without trials, for counts below 0, and for more of them than trials.
    """
    if trials < 1 or min(successes, lost or 0) < 0 or successes + (lost or 0) > trials:
        given = f"{successes:g} of {trials:g}" + (f" and {lost:g} lost" if lost is not None else "")
        raise ValueError(f"rate: {given}; a rate needs at least one trial, and counts between 0 and all of them")
    counts = {"successes": successes, "trials": trials, "lost": float("nan") if lost is None else lost}
    value = (successes - (lost or 0)) / trials + shift
    low, high = Rate(value, value, value, **counts).limits(level, 1 - level)
    return Rate(value, low, high, df=float("inf"), **counts)


def least(parts: Mapping[str, Interval], level: float) -> Least:
    """The smallest of several estimates (name -> Interval at ``level``), with limits that need no choice of one.

    Above the low all of them lie with the error of one (an intersection-union test: the smallest is one of them); the
    high is that of the one with the smallest high, with Bonferroni's correction for having looked at all.
    ValueError for no parts.
    """
    if not parts:
        raise ValueError("least: no intervals given; name at least one")
    value = min(part.value for part in parts.values())
    low, high = Least(value, value, value, parts=dict(parts)).limits(level, 1 - level)
    return Least(value, low, high, parts=dict(parts))


def _clopper_pearson(count: float, trials: float, alpha: float) -> tuple[float, float]:
    low = float(stats.beta.ppf(alpha / 2, count, trials - count + 1)) if count > 0 else 0.0
    return low, float(stats.beta.isf(alpha / 2, count + 1, trials - count)) if count < trials else 1.0
