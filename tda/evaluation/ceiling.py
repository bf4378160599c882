"""The noise ceiling of a retraining bank: the mean LDS that a perfect predictor would get.

Two seeds of the same subset differ, so no method can reach an LDS of 1. With r1 the Spearman correlation of
two single seeds over subsets, averaged over queries and seed pairs, the mean of R seeds has reliability
R r1 / (1 + (R - 1) r1) (Spearman 1910, Brown 1910), and a noise-free prediction correlates with it at most by
the root:

    ceiling(R) = sqrt( R r1 / (1 + (R - 1) r1) ),   0 where r1 <= 0.

A loss that seed r shifts equally for all subsets does no harm: ranks are taken within a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from .intervals import jackknife, two_way_interval
from .lds import check_outputs
from .ranks import average_ranks, correlate_ranks, small_sample_shortfall


@dataclass(frozen=True)
class Ceiling:
    """Noise ceiling of a bank with M subsets, R seeds, Q queries.

    value, low, high      the ceiling for the mean of the R seeds and its interval (that of r1, transformed).
    r1, r1_low, r1_high   single-seed reliability and its interval; r1 may be below 0 (then value is 0).
    per_query             [Q] r1 of every query (noisy for few subsets).
    r1_spread             estimated standard deviation of the true r1 between queries, jackknife noise
                          removed. The formula is concave in r1, so with a wide spread it lies above the mean
                          of the queries' own ceilings: by about .015 at a spread of .15 around r1 = .45
                          (R = 2), .025 at .2.
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

    def seeds_needed(self, target: float) -> float:
        """Seeds per subset for a ceiling of `target`, from r1; infinite where r1 <= 0."""
        return seeds_needed(self.r1, target)

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

    clusters [Q] and level as in `tda.evaluation.intervals`. The interval takes queries and subsets as random
    and the R seeds as given. With M = 2 the interval is [0, 1]: two subsets say nothing.
    Errors: ValueError for fewer than 2 seeds or 2 subsets, NaN or infinite losses, fewer than 2 clusters of
    queries.
    """
    outputs = _check(outputs)
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
    """Smallest R with ceiling(R) >= target: R >= target^2 (1 - r1) / (r1 (1 - target^2)); infinite where r1
    <= 0.

    Errors: ValueError for a target outside (0, 1) or an r1 that is not a correlation.
    """
    if not 0 < target < 1:
        raise ValueError(f"target ceiling {target}; give a number between 0 and 1, such as 0.7")
    if not -1 <= r1 <= 1:
        raise ValueError(f"r1 = {r1} is not a correlation; give a number between -1 and 1")
    if r1 <= 0:
        return math.inf
    return max(1, math.ceil(target**2 * (1 - r1) / (r1 * (1 - target**2)) - 1e-9))


def ceiling_curve(
    outputs: np.ndarray,
    n_subsets_list: Sequence[int],
    n_seeds_list: Sequence[int],
    seed: int = 0,
    draws: int = 20,
    clusters: Sequence | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """How the ceiling and its interval move with the number of subsets and seeds, and what more seeds would
    buy.

    outputs [M, R, Q]. For m <= M subsets and r <= R seeds: mean over `draws` random choices without
    replacement (one draw where nothing is left to choose). r = 1 and r > R cannot be measured here: there r1
    comes from all R seeds and the ceiling from the Spearman-Brown formula (`measured` is False).
    Returns one row per (m, r): n_subsets, n_seeds, measured, r1, ceiling, low, high, width, draws.
    Errors: ValueError for m outside 3..M, r < 1, draws < 1, and as in `ceiling`.
    """
    outputs = _check(outputs)
    size, seeds, _ = outputs.shape
    for m in n_subsets_list:
        if not 3 <= m <= size:
            raise ValueError(f"n_subsets_list holds {m}; the bank has {size} subsets, give numbers from 3 to {size}")
    if min(n_seeds_list) < 1 or draws < 1:
        raise ValueError(f"n_seeds_list = {list(n_seeds_list)}, draws = {draws}; both must be at least 1")
    rng = np.random.default_rng(seed)
    rows = []
    for m in n_subsets_list:
        for r in n_seeds_list:
            measured = 2 <= r <= seeds
            used = r if measured else seeds
            repeats = 1 if m == size and used == seeds else draws
            found = []
            for _ in range(repeats):
                chosen = np.sort(rng.permutation(size)[:m])
                which = np.sort(rng.permutation(seeds)[:used])
                c = ceiling(outputs[np.ix_(chosen, which)], clusters, level)
                found.append([c.r1, *(spearman_brown_ceiling(v, r) for v in (c.r1, c.r1_low, c.r1_high))])
            r1, value, low, high = np.mean(found, axis=0)
            rows.append((m, r, measured, r1, value, low, high, high - low, repeats))
    names = ["n_subsets", "n_seeds", "measured", "r1", "ceiling", "low", "high", "width", "draws"]
    return pd.DataFrame(rows, columns=names)


def _check(outputs: np.ndarray) -> np.ndarray:
    outputs = check_outputs(outputs, subsets=2)
    if outputs.shape[1] < 2:
        raise ValueError("1 seed per subset in the bank; a noise ceiling needs at least 2: raise `seeds` in the design")
    return outputs
