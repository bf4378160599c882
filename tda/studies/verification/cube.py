"""Random subsets of N examples, the p-biased basis on them, rho-correlated partners, and linear predictors.

A subset is a row of booleans. With x_i = +1 if example i is in it and -1 if not, mu = 2p - 1 and sigma^2 = 4p(1 - p),
the coordinate z_i = (x_i - mu) / sigma has mean 0 and variance 1 under inclusion with probability p, and the products
phi_T(x) = prod_{i in T} z_i are orthonormal. Every function of the subset is sum_T f_T phi_T.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def with_partners(
    rng: np.random.Generator, bases: np.ndarray, p: float, rho: float, coupled: bool = True
) -> np.ndarray:
    """[4, M, n] bool: the base subsets, and for every one a partner of correlation 0, rho and 2 rho.

    Each coordinate of the partner of correlation r keeps the base's with probability r and is drawn afresh otherwise,
    so that E z_i z'_i = r; equivalently an included example leaves with probability (1 - p)(1 - r) and an excluded one
    enters with p (1 - r). ``coupled``: the partners of one base share the fresh draws and the decisions (keep where
    u_i < r), so the partner of 2 rho differs from that of rho in a share rho of the coordinates only. Every single pair
    keeps its law; the differences of the partners' outputs have less variance.
    """
    check_probability(p)
    check_rho(rho)
    fresh, keep = rng.random(bases.shape) < p, rng.random(bases.shape)
    groups = [bases]
    for correlation in (0.0, rho, 2 * rho):
        groups.append(np.where(keep < correlation, bases, fresh))
        if not coupled:
            fresh, keep = rng.random(bases.shape) < p, rng.random(bases.shape)
    return np.stack(groups)


def standard(subsets: np.ndarray, p: float) -> np.ndarray:
    """z [..., n] float64: sqrt((1 - p) / p) for an included example, -sqrt(p / (1 - p)) for an excluded one."""
    check_probability(p)
    return np.where(subsets, np.sqrt((1 - p) / p), -np.sqrt(p / (1 - p)))


@dataclass(frozen=True)
class Attribution:
    """Scores [Q, N] and mean [Q], in units of the output: f_q(S) is predicted as mean_q + sum_i scores[q, i] (1[i in
    S] - p).

    ``scores[q, i]`` is what including example i adds to output q; ``mean`` is the expected output. Raises
    ``ValueError`` for shapes that do not fit and numbers that are not finite.
    """

    scores: np.ndarray
    mean: np.ndarray
    p: float

    def __post_init__(self) -> None:
        scores, mean = np.asarray(self.scores, np.float64), np.asarray(self.mean, np.float64)
        if scores.ndim != 2 or mean.shape != scores.shape[:1]:
            raise ValueError(f"scores {scores.shape} and mean {mean.shape}; they must be [Q, N] and [Q].")
        if not np.isfinite(scores).all() or not np.isfinite(mean).all():
            raise ValueError("an attribution holds NaN or infinite numbers; every score and mean must be finite.")
        check_probability(self.p)
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "mean", mean)

    def predict(self, subsets: np.ndarray) -> np.ndarray:
        """[M, Q] float64."""
        subsets = check_subsets(subsets, self.scores.shape[1])
        return self.mean + (subsets - self.p) @ self.scores.T

    def error(self, best: Attribution) -> np.ndarray:
        """err [Q] = MSE - best MSE = (mean - mean*)^2 + p (1 - p) |scores - scores*|^2 against the ``best``
        predictor.
        """
        gap = np.square(self.scores - best.scores).sum(1)
        return np.square(self.mean - best.mean) + self.p * (1 - self.p) * gap
