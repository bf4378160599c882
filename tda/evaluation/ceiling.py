"""The noise ceiling of a retraining bank: the mean LDS that a perfect predictor would get.

Two seeds of the same subset differ, so no method can reach an LDS of 1. With r1 the Spearman correlation of two single
seeds over subsets, averaged over queries and seed pairs, the mean of R seeds has reliability R r1 / (1 + (R - 1) r1)
(Spearman 1910, Brown 1910), and a noise-free prediction correlates with it at most by the root:

    ceiling(R) = sqrt( R r1 / (1 + (R - 1) r1) ),   0 where r1 <= 0.

A loss that seed r shifts equally for all subsets does no harm: ranks are taken within a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from .intervals import jackknife, small_sample_shortfall, two_way_interval
from .lds import average_ranks, check_outputs, correlate_ranks


@dataclass(frozen=True)
class Ceiling:
    """Noise ceiling of a bank with M subsets, R seeds, Q queries.

    value, low, high      the ceiling for the mean of the R seeds and its interval (that of r1, transformed).
    r1, r1_low, r1_high   single-seed reliability and its interval; r1 may be below 0 (then value is 0).
    r1_spread             estimated standard deviation of the true r1 between queries, jackknife noise removed. The
                          formula is concave in r1, so with a wide spread it lies above the mean of the queries' own
                          ceilings: by about .015 at a spread of .15 around r1 = .45 (R = 2), .025 at .2.
    per_query             [Q] r1 of every query (noisy for few subsets).
    """

    value: float
    low: float
    high: float
    r1: float
    r1_low: float
    r1_high: float
    r1_spread: float
    per_query: np.ndarray
    n_subsets: int
    n_seeds: int
    n_queries: int

    def cure(self, least: float) -> str:
        """What a bank needs whose ceiling's lower bound is to reach ``least``."""
        seeds = seeds_needed(max(self.r1_low, -1.0), least)
        if math.isinf(seeds):
            return (
                "its reliability is not safely above zero; more subsets or queries are needed, seeds alone do not help"
            )
        return f"{seeds:g} seeds would put the lower bound at {least:g}"


def ceiling(outputs: np.ndarray, clusters: Sequence | None = None, level: float = 0.95) -> Ceiling:
    """Noise ceiling of a bank, outputs [M, R, Q] with seed r shared by all subsets, and its interval.

    clusters [Q] and level as in `tda.evaluation.intervals`. The interval takes queries and subsets as random and the R
    seeds as given. With M = 2 the interval is [0, 1]: two subsets say nothing.
    Errors: ValueError for fewer than 2 seeds or 2 subsets, NaN or infinite losses, fewer than 2 clusters of queries.
    """
    outputs = check_outputs(outputs, subsets=2)
    if outputs.shape[1] < 2:
        raise ValueError("1 seed per subset in the bank; a noise ceiling needs at least 2: raise `seeds` in the design")
    size, seeds, queries = outputs.shape
    ranks = [average_ranks(-outputs[:, r].T) for r in range(seeds)]
    pairs = list(combinations(range(seeds), 2))
    if size == 2:
        per_query = np.mean([correlate_ranks(ranks[a], ranks[b]) for a, b in pairs], axis=0)
        r1, low, high, spread = float(per_query.mean()), -1.0, 1.0, float("nan")
    else:
        per_query, pseudo = np.zeros(queries), np.zeros((queries, size))
        for b in range(1, seeds):
            for full, left_out in jackknife(dict(enumerate(ranks[:b])), ranks[b]).values():
                per_query += full / len(pairs)
                pseudo += left_out / len(pairs)
        short = float(small_sample_shortfall(per_query, size).mean())
        interval = two_way_interval(per_query, pseudo, clusters, level, short)
        r1, low, high = interval.value, max(interval.low, -1.0), min(interval.high, 1.0)
        noise = (pseudo.var(axis=1, ddof=1) / size).mean()
        spread = math.sqrt(max(per_query.var(ddof=1) - noise, 0.0))
    bounds = [spearman_brown_ceiling(value, seeds) for value in (r1, low, high)]
    return Ceiling(*bounds, r1, low, high, spread, per_query, size, seeds, queries)


def spearman_brown_ceiling(r1: float, seeds: int) -> float:
    """sqrt(R r1 / (1 + (R - 1) r1)) for R seeds; 0 where r1 <= 0."""
    r1 = min(max(r1, 0.0), 1.0)
    return math.sqrt(seeds * r1 / (1 + (seeds - 1) * r1))


def seeds_needed(r1: float, target: float) -> float:
    """Smallest R with ceiling(R) >= target: R >= target^2 (1 - r1) / (r1 (1 - target^2)); infinite where r1 <= 0.

    Errors: ValueError for a target outside (0, 1) or an r1 that is not a correlation.
    """
    if not 0 < target < 1:
        raise ValueError(f"target ceiling {target}; give a number between 0 and 1, such as 0.7")
    if not -1 <= r1 <= 1:
        raise ValueError(f"r1 = {r1} is not a correlation; give a number between -1 and 1")
    if r1 <= 0:
        return math.inf
    return max(1, math.ceil(target**2 * (1 - r1) / (r1 * (1 - target**2)) - 1e-9))
