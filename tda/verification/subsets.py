"""Random subsets of N examples, the p-biased basis on them, and rho-correlated partners.

A subset is a row of booleans. With x_i = +1 if example i is in it and -1 if not, mu = 2p - 1 and sigma^2 = 4p(1 - p),
the coordinate z_i = (x_i - mu) / sigma has mean 0 and variance 1 under inclusion with probability p, and the products
phi_T(x) = prod_{i in T} z_i are orthonormal. Every function of the subset is sum_T f_T phi_T.
"""

from __future__ import annotations

import numpy as np


def check_probability(p: float) -> float:
    """``p`` if it is an inclusion probability. Raises ``ValueError`` unless 0 < p < 1."""
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 < p < 1:
        raise ValueError(f"inclusion probability p={p!r}; it must lie strictly between 0 and 1, for example 0.5.")
    return float(p)


def check_rho(rho: float) -> float:
    """``rho`` if 2 rho is still a correlation. Raises ``ValueError`` unless 0 < rho <= 1/2."""
    if isinstance(rho, bool) or not isinstance(rho, int | float) or not 0 < rho <= 0.5:
        raise ValueError(f"rho={rho!r}; both rho and 2 rho are correlations, so 0 < rho <= 0.5.")
    return float(rho)


def check_subsets(subsets: np.ndarray, n: int) -> np.ndarray:
    """``subsets`` [M, n] bool. Raises ``ValueError`` for another shape or type."""
    subsets = np.asarray(subsets)
    if subsets.ndim != 2 or subsets.shape[1] != n or subsets.dtype != bool:
        raise ValueError(
            f"subsets are {subsets.dtype} {subsets.shape}; they must be bool [subsets, {n}], one column an example."
        )
    return subsets


def draw(rng: np.random.Generator, count: int, n: int, p: float) -> np.ndarray:
    """[count, n] bool: every example is in every subset with probability ``p``, independently."""
    return rng.random((count, n)) < check_probability(p)


def partners(
    rng: np.random.Generator, bases: np.ndarray, p: float, rhos: tuple[float, ...], coupled: bool = True
) -> np.ndarray:
    """[len(rhos), M, n] bool: for every base subset a partner of each correlation.

    Each coordinate of the partner of correlation r keeps the base's with probability r and is drawn afresh otherwise,
    so that E z_i z'_i = r; equivalently an included example leaves with probability (1 - p)(1 - r) and an excluded one
    enters with p (1 - r). ``coupled``: the partners of one base share the fresh draws and the decisions (keep where
    u_i < r), so the partner of 2 rho differs from that of rho in a share rho of the coordinates only. Every single pair
    keeps its law; the differences of the partners' outputs have less variance.
    """
    check_probability(p)
    if not all(0 <= r <= 1 for r in rhos):
        raise ValueError(f"correlations {rhos}; each must lie in [0, 1].")
    fresh, keep = rng.random(bases.shape) < p, rng.random(bases.shape)
    found = []
    for r in rhos:
        found.append(np.where(keep < r, bases, fresh))
        if not coupled:
            fresh, keep = rng.random(bases.shape) < p, rng.random(bases.shape)
    return np.stack(found)


def standard(subsets: np.ndarray, p: float) -> np.ndarray:
    """z [..., n] float64: sqrt((1 - p) / p) for an included example, -sqrt(p / (1 - p)) for an excluded one."""
    check_probability(p)
    return np.where(subsets, np.sqrt((1 - p) / p), -np.sqrt(p / (1 - p)))
