"""LDS over several banks and models: weighted sums with one paired interval.

A grid of settings has a bank for each of them. Where all banks share their subsets and queries, sums and differences of
LDS over settings are still statistics of the same two random factors, and the two-way jackknife of
:mod:`tda.evaluation.intervals` applies to the sum of the pseudo-values. Models and settings are taken as given. A
statistic that is not an LDS gets its interval from settings left out one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tda.evaluation.intervals import Interval, jackknife, mean_interval, small_sample_shortfall, two_way_interval
from tda.evaluation.lds import output_ranks, prediction_ranks


@dataclass(frozen=True)
class PooledLds:
    """LDS [Q], its pseudo-values over subsets [Q, M], and the mean shortfall of a rank correlation over M subsets."""

    value: np.ndarray
    pseudo: np.ndarray
    short: float


def pooled_lds(models: Sequence[np.ndarray], subsets: np.ndarray, outputs: np.ndarray) -> PooledLds:
    """The mean LDS of the scores [Q, N] of several models on one bank; arguments and errors as in ``lds``."""
    ranks = {i: prediction_ranks(scores, subsets, outputs) for i, scores in enumerate(models)}
    values, pseudos = zip(*jackknife(ranks, output_ranks(outputs)).values(), strict=True)
    short = np.mean([small_sample_shortfall(value, len(outputs)).mean() for value in values])
    return PooledLds(np.mean(values, axis=0), np.mean(pseudos, axis=0), float(short))


def weighted_sum(
    parts: Sequence[tuple[float, PooledLds]], clusters: Sequence | None = None, level: float = 0.95
) -> Interval:
    """Interval of ``sum of weight x mean LDS`` over (weight, part) pairs, paired in queries and subsets.

    Raises ``ValueError`` for parts whose numbers of queries and subsets differ: they cannot share a bank.
    """
    shapes = {part.pseudo.shape for _, part in parts}
    if len(shapes) != 1:
        raise ValueError(f"weighted_sum: parts of shapes {sorted(shapes)}; all must have the same queries and subsets.")
    value = sum(weight * part.value for weight, part in parts)
    pseudo = sum(weight * part.pseudo for weight, part in parts)
    return two_way_interval(value, pseudo, clusters, level, sum(weight * part.short for weight, part in parts))


def jackknife_over_settings(values: Sequence, estimate: Callable[[list], float], level: float = 0.95) -> Interval:
    """``estimate(values)`` of one value a setting, with a jackknife interval that leaves out one setting at a time.

    For a mean it is the t interval over settings. Needs at least 3 settings, the fewest that leave two.
    """
    values = list(values)
    if len(values) < 3:
        raise ValueError(f"jackknife_over_settings: {len(values)} settings; at least 3 are needed to leave one out.")
    full, n = float(estimate(values)), len(values)
    pseudo = [n * full - (n - 1) * estimate(values[:i] + values[i + 1 :]) for i in range(n)]
    about = mean_interval(np.array(pseudo), level=level)
    return Interval(full, full - (about.value - about.low), full + (about.high - about.value), about.se, about.df)
