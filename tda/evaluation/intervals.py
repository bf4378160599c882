"""Intervals for means over test queries, with queries and retrained subsets both random.

Rows of a bank (subsets) and columns (queries) are two crossed random factors; the R seeds are fixed. The interval is a
two-way jackknife. With P[q, m] = M * LDS_q - (M - 1) * LDS_q(without subset m), the pseudo-values,

    V_subsets  = variance of the column means of P / M                     (delete-one jackknife over subsets)
    V_queries  = variance of the mean over clusters of queries             (cluster-robust: person)
    V_both     = variance of the doubly centred rest, which both of the above contain
    V          = max(V_subsets + V_queries - V_both, V_subsets, V_queries)
    half       = t(df) * sqrt(V),   df = (V_s + V_q)^2 / (V_s^2 / (M - 1) + V_q^2 / (G - 1))   (Satterthwaite)
    short      = mean of 3 (LDS_q - tau(LDS_q)) / (M + 1): rank correlations over few subsets are too small
    interval   = [mean LDS - half + min(short, 0),  mean LDS + half + max(short, 0)]

The value stays the plain mean; the interval is widened on one side by the shortfall. What is estimated is the LDS over
infinitely many subsets of the same design, with as many seeds each, and over queries like these. Fewer than about 10
clusters of queries, or per-query values with a very heavy tail, are covered less often than `level` says (0.85-0.93 at
0.95). Differences of two methods use the differences of their pseudo-values, so they are paired in queries and subsets.
Nothing is resampled: the result has no seed. Chapter 03 measures what this and the bootstrap cover.
Sources: Efron & Stein, "The jackknife estimate of variance", 1981; Cameron, Gelbach & Miller, "Robust inference with
multiway clustering", 2011.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from .lds import (
    check_outputs,
    correlate_ranks,
    deleted_unit_deviations,
    given_prediction_ranks,
    output_ranks,
    prediction_ranks,
)

CHUNK = 4_000_000  # numbers in one [queries, M, M] block: 32 MB


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; unpacks as `value, low, high`. se and df are those of the t interval.

    As text it is ``f"{interval:.2f}"``, for instance 0.52 [0.47, 0.57]; ``:+.3f`` shows the sign of all three.
    """

    value: float
    low: float
    high: float
    se: float = float("nan")
    df: float = float("nan")

    def __iter__(self) -> Iterator[float]:
        return iter((self.value, self.low, self.high))

    def __format__(self, number: str) -> str:
        return "{} [{}, {}]".format(*(format(part, number or ".3g") for part in self))

    def limits(self, level: float, alpha: float) -> tuple[float, float]:
        """(low, high) at level 1 - ``alpha`` of an interval made at ``level``: its sides are multiples of t(df)."""
        low, high = self.value - self.low, self.high - self.value
        wider = float(stats.t.isf(alpha / 2, self.df) / stats.t.isf((1 - level) / 2, self.df)) if low or high else 1.0
        return self.value - wider * low, self.value + wider * high


@dataclass(frozen=True)
class RowResult:
    """One leaderboard row: per-query values [Q], interval of their mean, differences to reference rows."""

    per_query: np.ndarray
    value: Interval
    difference: dict[str, Interval] = field(default_factory=dict)


def lds_intervals(
    scores: Mapping[str, np.ndarray],
    subsets: np.ndarray,
    outputs: np.ndarray,
    clusters: Sequence | None = None,
    level: float = 0.95,
    references: Sequence[str] = (),
    predictions: Mapping[str, np.ndarray] | None = None,
) -> dict[str, RowResult]:
    """LDS of many rows on one bank: row id -> RowResult. Memory: about 100 MB at most beside the inputs.

    scores       row id -> [Q, N];  subsets [M, N] bool;  outputs [M, R, Q] losses (see `lds`).
    clusters     [Q] labels of queries that belong together (same person or author); None: every query on its own.
    level        coverage of the intervals, in (0, 1).
    references   row ids; every row gets its paired difference (row minus reference) to each of them.
    predictions  row id -> [Q, M], rows that predict the subsets themselves, not by a sum of scores.
    Errors       ValueError as in `lds`; for a reference that is not among the rows; for fewer than 2 clusters.
    """
    outputs = check_outputs(outputs)
    ranks = {name: prediction_ranks(matrix, subsets, outputs) for name, matrix in scores.items()}
    ranks |= {name: given_prediction_ranks(matrix, outputs) for name, matrix in (predictions or {}).items()}
    _check_references(references, ranks)
    parts, result = jackknife(ranks, output_ranks(outputs)), {}
    short = {name: float(small_sample_shortfall(value, len(outputs)).mean()) for name, (value, _) in parts.items()}
    for name, (value, pseudo) in parts.items():
        against = {}
        for other in references:
            difference, rest = value - parts[other][0], pseudo - parts[other][1]
            against[other] = two_way_interval(difference, rest, clusters, level, short[name] - short[other])
        result[name] = RowResult(value, two_way_interval(value, pseudo, clusters, level, short[name]), against)
    return result


def small_sample_shortfall(rho: np.ndarray, size: int) -> np.ndarray:
    """How much a Spearman correlation over few pairs falls short of its value over infinitely many, [...] -> [...].

    For continuous pairs E[r_s] = rho_s - 3 (rho_s - tau) / (M + 1) (Moran, "Rank correlation and product-moment
    correlation", 1948); Kendall's tau is taken from rho_s by the relation for normal pairs. The result has the sign of
    rho: 0.034 for rho = 0.8 and M = 16.
    """
    tau = 2 / np.pi * np.arcsin(2 * np.sin(np.pi / 6 * np.asarray(rho)).clip(-0.5, 0.5))
    return 3 * (rho - tau) / (size + 1)


def jackknife(rows: Mapping[str, np.ndarray], target: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Spearman [Q] of each rank array [Q, M] with `target` [Q, M], and its pseudo-values [Q, M]."""
    queries, size = target.shape
    left_out = {name: np.empty((queries, size)) for name in rows}
    step = max(1, CHUNK // size**2)
    for start in range(0, queries, step):
        part = slice(start, start + step)
        base = deleted_unit_deviations(target[part])
        for name, ranks in rows.items():
            left_out[name][part] = (deleted_unit_deviations(ranks[part]) * base).sum(axis=-1)
    full = {name: correlate_ranks(ranks, target) for name, ranks in rows.items()}
    return {name: (full[name], size * full[name][:, None] - (size - 1) * left_out[name]) for name in rows}


def two_way_interval(
    per_query: np.ndarray,
    pseudo: np.ndarray,
    clusters: Sequence | None = None,
    level: float = 0.95,
    short: float = 0.0,
) -> Interval:
    """Interval of mean(per_query) [Q] from jackknife pseudo-values [Q, M] over subsets: the formula above."""
    queries, size = pseudo.shape
    column = pseudo.mean(axis=0)
    subsets_part = column.var(ddof=1) / size
    label, groups = clusters_of(clusters, queries)
    queries_part = _cluster_variance(per_query, label, groups)
    rest = pseudo - pseudo.mean(axis=1, keepdims=True) - column + column.mean()
    summed = np.zeros((groups, size))
    np.add.at(summed, label, rest)
    both = (summed**2).sum() / (queries * size) ** 2 * groups * size / ((groups - 1) * (size - 1))
    variance = max(subsets_part + queries_part - both, subsets_part, queries_part)
    spread = subsets_part**2 / (size - 1) + queries_part**2 / (groups - 1)
    df = (subsets_part + queries_part) ** 2 / spread if spread > 0 else float("inf")
    plain = t_interval(float(per_query.mean()), float(np.sqrt(variance)), df, level)
    return Interval(plain.value, plain.low + min(short, 0.0), plain.high + max(short, 0.0), plain.se, plain.df)


def mean_interval(per_query: np.ndarray, clusters: Sequence | None = None, level: float = 0.95) -> Interval:
    """Mean of a per-query metric (recall, precision, removal, tail patch) with a cluster-robust t interval.

    per_query  [Q] finite; for a paired comparison give the difference of two metrics query by query.
    clusters   [Q] labels of queries that belong together, G >= 2 of them; None: every query on its own.
    V = G / (G - 1) * sum over clusters of (sum of deviations in the cluster)^2 / Q^2;  interval = mean +- t(G - 1)
    sqrt(V). ValueError for NaN or infinite values, an empty or two-dimensional input, or fewer than 2 clusters.
    """
    values = np.asarray(per_query, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"mean_interval: given shape {values.shape}; give [Q] finite numbers, one per query")
    label, groups = clusters_of(clusters, len(values))
    return t_interval(float(values.mean()), float(np.sqrt(_cluster_variance(values, label, groups))), groups - 1, level)


def mean_intervals(
    per_query: Mapping[str, np.ndarray],
    clusters: Sequence | None = None,
    level: float = 0.95,
    references: Sequence[str] = (),
) -> dict[str, RowResult]:
    """`mean_interval` of many rows (row id -> [Q]) with paired differences to the reference rows."""
    rows = {name: np.asarray(values, dtype=np.float64) for name, values in per_query.items()}
    _check_references(references, rows)
    result = {}
    for name, values in rows.items():
        against = {other: mean_interval(values - rows[other], clusters, level) for other in references}
        result[name] = RowResult(values, mean_interval(values, clusters, level), against)
    return result


def t_interval(value: float, se: float, df: float, level: float) -> Interval:
    """value +- t(df) * se at the given two-sided level."""
    if not 0 < level < 1:
        raise ValueError(f"level = {level}; give a coverage between 0 and 1, such as 0.95")
    half = float(stats.t.ppf(0.5 + level / 2, df)) * se if se > 0 else 0.0
    return Interval(value, value - half, value + half, se, float(df))


def clusters_of(clusters: Sequence | None, queries: int) -> tuple[np.ndarray, int]:
    """(the cluster [Q] of every query as a number, how many clusters there are); ``None``: every query is its own."""
    names, label = range(queries), np.arange(queries)
    if clusters is not None:
        if len(clusters) != queries:
            raise ValueError(f"{len(clusters)} cluster labels for {queries} queries; give one label per query")
        names, label = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{queries} queries in {len(names)} cluster; an interval needs at least 2 clusters of queries")
    return label, len(names)


def _cluster_variance(values: np.ndarray, label: np.ndarray, groups: int) -> float:
    total = np.bincount(label, weights=values - values.mean(), minlength=groups)
    return float(groups / (groups - 1) * (total**2).sum() / len(values) ** 2)


def _check_references(references: Sequence[str], rows: Mapping) -> None:
    if missing := [name for name in references if name not in rows]:
        raise ValueError(f"reference rows {missing} are not among the rows {sorted(rows)}; add their scores")
