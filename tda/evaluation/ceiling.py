"""The noise ceiling of a retraining bank: the mean LDS that a perfect predictor would get.

Two seeds of the same subset differ, so no method can reach an LDS of 1. The best that can be predicted is the expected
loss of every subset; the ceiling is its mean Spearman correlation with minus the mean loss of the R seeds, over the
bank's M subsets. It is estimated in two steps.

1. Agreement a_q: Spearman correlation, for query q, of the mean loss of half the seeds with that of the other half,
   averaged over ways to part them. Only one doubling of the seeds is then left to be inferred.
2. ceiling = mean over queries of C(a_q), where C leads from the agreement of halves to the agreement of all seeds with
   the expected loss. C comes from a simulation in the shape of the bank's own losses (`attenuation.py`). The a_q are
   noisy, and C is curved: the mean is over a logit-normal distribution with the mean of the a_q and their variance
   less jackknife noise.

For Gaussian losses and equal queries this is Spearman and Brown's sqrt(R r1 / (1 + (R - 1) r1)). Chapter 03 measures
the error of both outside that case: within .02, but for two seeds whose noise grows with the loss (too low by up to
.04), where few subsets carry all signal (too high by up to .12, the formula by .3), and where the agreement is not
safely above 0. A loss that seed r shifts equally for all subsets does no harm: ranks are taken
within a seed or a half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from .attenuation import halves, logit_normal, relation
from .intervals import Interval, RowResult, clusters_of, jackknife, two_way_interval
from .lds import average_ranks, check_outputs, correlate_ranks

LEAST = 0.01  # agreement at which the shape is matched where the bank shows less


@dataclass(frozen=True)
class Ceiling:
    """Noise ceiling of a bank with M subsets, R seeds, Q queries.

    value, low, high  the ceiling for the mean of the R seeds and its interval (that of the agreement, through C).
    r1                mean Spearman correlation of two single seeds; may be below 0.
    agreement         of two halves of the seeds, with its interval (for R = 2 its value is r1).
    spread            standard deviation of the true agreement between queries, jackknife noise removed.
    per_query         [Q] agreement of every query (noisy for few subsets); pseudo [Q, M] its jackknife pseudo-values.
    slope             of the ceiling by the agreement, at its value.
    shape             what the simulation was matched to: tails and skews of noise and signal, spread over subsets.
    """

    value: float
    low: float
    high: float
    r1: float
    agreement: Interval
    spread: float
    n_subsets: int
    n_seeds: int
    n_queries: int
    slope: float = float("nan")
    shape: dict[str, float] = field(default_factory=dict)
    per_query: np.ndarray | None = field(default=None, repr=False)
    pseudo: np.ndarray | None = field(default=None, repr=False)

    def cure(self, least: float) -> str:
        """What a bank needs whose ceiling's lower bound is to reach ``least``."""
        seeds = seeds_needed(self.low, self.n_seeds, least)
        if math.isinf(seeds):
            return (
                "its reliability is not safely above zero; more subsets or queries are needed, seeds alone do not help"
            )
        return f"{seeds:g} seeds would put the lower bound at {least:g}"


def ceiling(outputs: np.ndarray, clusters: Sequence | None = None, level: float = 0.95) -> Ceiling:
    """Noise ceiling of a bank, outputs [M, R, Q] with seed r shared by all subsets, and its interval.

    clusters [Q] and level as in `tda.evaluation.intervals`. The interval takes queries and subsets as random and the R
    seeds and the shape of the losses as given. With M = 2 the interval is [0, 1]: two subsets say nothing.
    Errors: ValueError for fewer than 2 seeds or 2 subsets, NaN or infinite losses, fewer than 2 clusters of queries.
    """
    outputs = check_outputs(outputs, subsets=2).astype(np.float64)
    size, seeds, queries = outputs.shape
    if seeds < 2:
        raise ValueError("1 seed per subset in the bank; a noise ceiling needs at least 2: raise `seeds` in the design")
    clusters_of(clusters, queries)  # refuses fewer than two
    ranks = average_ranks(-np.moveaxis(outputs, 0, 2))  # [R, Q, M]
    r1 = float(np.mean([correlate_ranks(ranks[a], ranks[b]).mean() for a, b in combinations(range(seeds), 2)]))
    per_query, pseudo = _agreement(outputs)
    rest = pseudo - pseudo.mean(axis=1, keepdims=True) - pseudo.mean(axis=0) + pseudo.mean()
    noise = (rest**2).sum() / ((queries - 1) * (size - 1) * size)
    variance = max(float(per_query.var(ddof=1)) - noise, 0.0)
    mean = float(np.clip(per_query.mean(), LEAST, 1 - 1e-9))
    halves_agree, with_truth, shape = relation(outputs, (mean, variance))
    of = _over_queries(halves_agree, with_truth, mean, variance)
    if size == 2:
        agreement = Interval(float(per_query.mean()), -1.0, 1.0)
    else:
        agreement = two_way_interval(per_query, pseudo, clusters, level)
    step = min(0.01, mean / 2)
    slope = (of(mean + step) - of(mean - step)) / (2 * step)
    bounds = [of(value) for value in agreement]
    counts = (size, seeds, queries)
    return Ceiling(*bounds, r1, agreement, math.sqrt(variance), *counts, slope, shape, per_query, pseudo)


def _agreement(outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Agreement of halves [Q] and its jackknife pseudo-values [Q, M]."""
    parts, found = halves(outputs.shape[1]), []
    for pair in parts:
        first, second = (average_ranks(-outputs[:, part].mean(axis=1).T) for part in pair)
        found.append(jackknife({"first": first}, second)["first"])
    return tuple(np.mean(kind, axis=0) for kind in zip(*found, strict=True))


def _over_queries(x: np.ndarray, y: np.ndarray, mean: float, variance: float) -> Callable[[float], float]:
    """The mean agreement of halves -> the mean over queries of C, whose points are x [K], y [K].

    The width of the distribution of queries on the logit scale is that at the measured mean.
    """

    def of(value: float) -> float:
        if value <= 0:
            return 0.0
        if value >= 1:
            return float(y[-1])
        scaled = variance * (value * (1 - value) / (mean * (1 - mean))) ** 2
        return float(np.interp(logit_normal(value, scaled), x, y).mean())

    return of


def share_of_ceiling(
    result: RowResult, bound: Ceiling, clusters: Sequence | None = None, level: float = 0.95
) -> Interval | None:
    """LDS / ceiling with its interval; ``None`` where the ceiling is 0.

    Both come from the same queries and subsets, so their pseudo-values are combined before the two-way jackknife
    (delta method): share = L / C,  d share = dL / C - L C'(a) da / C^2.
    Errors: ValueError for a result without pseudo-values or of other queries or subsets than the ceiling.
    """
    if result.pseudo is None or result.pseudo.shape != bound.pseudo.shape:
        given = None if result.pseudo is None else result.pseudo.shape
        raise ValueError(f"share_of_ceiling: pseudo-values {given} of the LDS, {bound.pseudo.shape} of the ceiling")
    if bound.value <= 0:
        return None
    lds = result.value.value
    by_agreement = lds * bound.slope / bound.value**2
    each = result.per_query / bound.value - by_agreement * (bound.per_query - bound.agreement.value)
    pseudo = result.pseudo / bound.value - by_agreement * (bound.pseudo - bound.agreement.value)
    return two_way_interval(each, pseudo, clusters, level)


def with_seeds(value: float, seeds: int, other: int) -> float:
    """The ceiling with `other` seeds where it is `value` with `seeds`: value^2 / (1 - value^2) grows in proportion.

    Spearman (1910), Brown (1910). Exact for Pearson correlations; heavy-tailed or skewed losses gain less.
    """
    if not 0 < value < 1:
        return float(value > 0)
    odds = value**2 / (1 - value**2) * other / seeds
    return math.sqrt(odds / (1 + odds))


def seeds_needed(value: float, seeds: int, target: float) -> float:
    """Smallest number of seeds with `with_seeds(value, seeds, R) >= target`; infinite where value is 0.

    Errors: ValueError for a target outside (0, 1), a value outside [0, 1] or fewer than 1 seed.
    """
    if not 0 < target < 1:
        raise ValueError(f"target ceiling {target}; give a number between 0 and 1, such as 0.7")
    if not 0 <= value <= 1 or seeds < 1:
        raise ValueError(f"a ceiling of {value} with {seeds} seeds; give a ceiling from 0 to 1 and at least 1 seed")
    if value in (0, 1):
        return math.inf if value == 0 else 1
    ratio = target**2 / (1 - target**2) * (1 - value**2) / value**2
    return max(1, math.ceil(seeds * ratio - 1e-9))
