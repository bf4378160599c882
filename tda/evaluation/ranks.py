"""Average ranks, row-wise Spearman correlation and its delete-one pseudo-values. Everything here is
vectorised numpy."""

from __future__ import annotations

import numpy as np

EPS = np.finfo(np.float64).eps


def average_ranks(values: np.ndarray, tolerance: np.ndarray | float = 0.0) -> np.ndarray:
    """Ranks 1..M along the last axis, ties sharing their average rank.

    values      [..., M] finite numbers.
    tolerance   [...] or a number: neighbours in sorted order that differ by at most this much count as tied,
                so that round-off in a long sum does not break a tie that exists on paper.
    Returns float64 [..., M].
    """
    values = np.asarray(values, dtype=np.float64)
    size = values.shape[-1]
    order = np.argsort(values, axis=-1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=-1)
    step = np.diff(ordered, axis=-1) > np.asarray(tolerance, dtype=np.float64)[..., None]
    edge = np.ones(values.shape[:-1] + (1,), dtype=bool)
    place = np.arange(size)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, step], axis=-1), place, 0), axis=-1)
    last = np.where(np.concatenate([step, edge], axis=-1), place, size - 1)
    last = np.minimum.accumulate(last[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=-1)
    return ranks


def unit_deviations(ranks: np.ndarray) -> np.ndarray:
    """Ranks minus their mean, scaled to length one along the last axis; zeros for constant ranks."""
    deviation = ranks - ranks.mean(axis=-1, keepdims=True)
    length = np.sqrt((deviation**2).sum(axis=-1, keepdims=True))
    return np.divide(deviation, length, out=np.zeros_like(deviation), where=length > 1e-9)


def correlate_ranks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of two rank arrays [..., M] along the last axis -> [...]; 0 if one is constant."""
    return np.clip((unit_deviations(a) * unit_deviations(b)).sum(axis=-1), -1.0, 1.0)


def spearman_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman correlation of every row of `a` with the same row of `b`.

    a, b    [Q, M], M >= 2, finite. Ties share average ranks, so that this equals `scipy.stats.spearmanr` row
            by row, except that a constant row gives 0 instead of NaN.
    Returns [Q] float64 in [-1, 1].
    Errors: ValueError for other shapes and for NaN or infinite numbers.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] < 2:
        raise ValueError(f"spearman_rows: given shapes {a.shape} and {b.shape}; give two [Q, M] arrays, M >= 2")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("spearman_rows: the arrays hold NaN or infinite numbers; drop or repair those rows first")
    return correlate_ranks(average_ranks(a), average_ranks(b))


def deleted_unit_deviations(ranks: np.ndarray) -> np.ndarray:
    """Unit rank deviations after leaving out each column in turn.

    ranks   [Q, M] average ranks.
    Returns [Q, M, M]: entry [q, j, i] belongs to column i when column j is left out (0 for i = j). Without
    re-sorting: leaving out j lowers the rank of i by 1 if j ranked below i and by 1/2 if the two were tied.
    """
    below = ranks[:, :, None] < ranks[:, None, :]
    tied = ranks[:, :, None] == ranks[:, None, :]
    size = ranks.shape[1]
    deviation = ranks[:, None, :] - below - 0.5 * tied - size / 2  # the mean of M - 1 ranks is M / 2
    deviation[:, np.arange(size), np.arange(size)] = 0.0
    length = np.sqrt((deviation**2).sum(axis=-1, keepdims=True))
    return np.divide(deviation, length, out=np.zeros_like(deviation), where=length > 1e-9)


def small_sample_shortfall(rho: np.ndarray, size: int) -> np.ndarray:
    """How much a Spearman correlation over few pairs falls short of its value over infinitely many.

    For continuous pairs E[r_s] = rho_s - 3 (rho_s - tau) / (M + 1) (Moran, "Rank correlation and
    product-moment correlation", 1948); Kendall's tau is taken from rho_s by the relation for normal pairs.
    rho [...] -> [...], with the sign of rho: 0.034 for rho = 0.8 and M = 16.
    """
    tau = 2 / np.pi * np.arcsin(2 * np.sin(np.pi / 6 * np.asarray(rho)).clip(-0.5, 0.5))
    return 3 * (rho - tau) / (size + 1)


def pseudo_values(full: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Jackknife pseudo-values M * full - (M - 1) * left_out; full [Q], left_out [Q, M] -> [Q, M]."""
    size = left_out.shape[1]
    return size * full[:, None] - (size - 1) * left_out
