"""What retrained losses add to scores that exist: a regression whose prior knows the scores.

For one query, with w0 [N] its scores, S [m, N] the subsets that m models were trained on and y [m] minus their log
losses:

    y(S) = mu_s + a <w0, S> + <r, S> + noise,   r_i ~ N(0, tau v (w0_i^2 + c mean(w0^2)) / scale),   noise ~ N(0, v)

mu_s, one number for every seed s of the models, and a are free; the variance of r_i grows with the square of the score,
so that documents without influence stay without. ``scale`` makes tau the ratio of what r explains to the noise. One tau
serves all queries: it minimises their mean squared error on the left-out model, relative to the variance of y, exactly:
with V = tau K + I, K = S D S^T and X = [indicators of the seeds, S w0],

    Pi = V^-1 - V^-1 X (X^T V^-1 X)^-1 X^T V^-1,      error of the left-out model j = (Pi y)_j / Pi_jj

which refits mu_s and a without it (Dubrule 1983). The result is a w0 + r with r = tau D S^T Pi y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 32  # models below which a residual is not estimated
RATIOS = (0.0, *np.geomspace(1e-3, 1e3, 25))  # tau; 0: no residual


@dataclass(frozen=True)
class Fit:
    """``weights`` [Q, N], which are a w0 + r; ``slope`` a [Q]; ``ratio`` tau; ``errors``, the mean squared error of the
    left-out model relative to the variance of y, for every one of :data:`RATIOS`.
    """

    weights: np.ndarray
    slope: np.ndarray
    ratio: float
    errors: np.ndarray


def regress(
    scores: np.ndarray, subsets: np.ndarray, y: np.ndarray, floor: float = 0.1, seeds: Sequence[int] | None = None
) -> Fit:
    """The regression above for ``scores`` [Q, N], ``subsets`` bool [m, N], ``y`` [Q, m] and c = ``floor``; ``seeds``
    [m] of the models, where they share some (``None``: one mu for all).

    Time: an eigendecomposition of m x m and N m^2 a query. ``ValueError`` for fewer than :data:`LEAST` models, scores
    or y that do not vary, and shapes that do not fit.
    """
    parts = queries_of(scores, subsets, y, floor, seeds)
    errors = np.mean([[part.error(ratio) for ratio in RATIOS] for part in parts], 0)
    ratio = RATIOS[int(errors.argmin())]
    solved = [part.solve(ratio) for part in parts]
    return Fit(np.stack([w for w, _ in solved]), np.array([a for _, a in solved]), float(ratio), errors)


def datamodel(subsets: np.ndarray, y: np.ndarray, seeds: Sequence[int] | None = None) -> np.ndarray:
    """Weights [Q, N] of a regression that starts from no scores (Ilyas et al. 2022, by ridge): all documents alike
    beforehand, one penalty for all queries by the error of the left-out model.
    """
    subsets, nothing = np.asarray(subsets, np.float64), np.zeros(np.shape(subsets)[1])
    parts = [Query(nothing, subsets, row, 1.0, seeds) for row in np.asarray(y, np.float64)]
    errors = np.mean([[part.error(ratio) for ratio in RATIOS[1:]] for part in parts], 0)
    return np.stack([part.solve(RATIOS[1 + int(errors.argmin())])[0] for part in parts])


def cross_fitted(
    scores: np.ndarray | None, subsets: np.ndarray, y: np.ndarray, folds: int = 8, seeds: Sequence[int] | None = None,
    floor: float = 0.1,
) -> np.ndarray:  # fmt: skip
    """What the weights of :func:`regress` (without scores: :func:`datamodel`) predict of every model's y, [Q, m], but
    for the mu of its seed, from a fit without the model's fold. A fold holds all models of its seeds, if there are
    enough seeds. ``ValueError`` for fewer models than folds.
    """
    m = len(subsets)
    if not 2 <= folds <= m:
        raise ValueError(f"{m} models in {folds} folds; at least 2 folds and a model in each are needed.")
    predicted, seeds = np.empty(np.shape(y)), np.zeros(m, int) if seeds is None else np.asarray(seeds)
    number = np.unique(seeds, return_inverse=True)[1]
    of_model = (number if number.max() + 1 >= folds else np.arange(m)) % folds
    for fold in range(folds):
        out = of_model == fold
        part, kept = (subsets[~out], y[:, ~out]), seeds[~out]
        weights = datamodel(*part, kept) if scores is None else regress(scores, *part, floor, kept).weights
        centre = (weights @ subsets[~out].T).mean(1, keepdims=True)
        predicted[:, out] = weights @ subsets[out].T - centre
    return predicted


def queries_of(
    scores: np.ndarray, subsets: np.ndarray, y: np.ndarray, floor: float = 0.1, seeds: Sequence[int] | None = None
) -> list[Query]:
    """The :class:`Query` of every row of ``scores``; refuses as :func:`regress`."""
    scores, subsets, y = np.asarray(scores, np.float64), np.asarray(subsets, np.float64), np.asarray(y, np.float64)
    if subsets.ndim != 2 or scores.shape != (len(y), subsets.shape[1]) or y.shape[1:] != (len(subsets),):
        raise ValueError(f"scores {scores.shape}, subsets {subsets.shape}, y {y.shape}; [Q, N], [m, N] and [Q, m].")
    if len(subsets) < LEAST:
        raise ValueError(f"a residual of {len(subsets)} models; at least {LEAST} are needed, or none (residual=0).")
    if not (scores.any(1).all() and (y.std(1) > 0).all()):
        raise ValueError("a query's scores are all zero, or its losses are the same in all models: nothing to regress.")
    return [Query(w0, subsets, row, floor, seeds) for w0, row in zip(scores, y, strict=True)]


class Query:
    """One query: everything that does not depend on tau. ``left`` is what X leaves of y, ``free`` [m] the diagonal of
    that projection, of rank ``degrees``; ``values`` are the largest eigenvalues of K on what X leaves (all others are
    zero), in units in which their sum is ``degrees``, ``basis`` their vectors, ``along`` the coordinates of y, and
    ``variance`` that of y within seeds. Without scores (w0 = 0) X has the seeds alone.
    """

    def __init__(self, w0: np.ndarray, subsets: np.ndarray, y: np.ndarray, floor: float, seeds=None):
        if seeds is not None and len(seeds) != len(subsets):
            raise ValueError(f"{len(seeds)} seeds of {len(subsets)} models; one each.")
        if seeds is not None and 2 * len(np.unique(seeds)) > len(subsets):
            raise ValueError(
                f"{len(np.unique(seeds))} seeds for {len(subsets)} models: each has a mean of its own, and too little "
                f"is left to regress. Let two models or more share each seed: halves.seeds_from(..., sharing=2)."
            )
        spread = w0**2 + floor * (w0**2).mean() if w0.any() else np.ones(len(w0))
        self.w0, self.subsets, self.y = w0, subsets, y
        of_seeds = np.zeros(len(y), int) if seeds is None else np.unique(seeds, return_inverse=True)[1]
        seeded = np.eye(of_seeds.max() + 1)[of_seeds]
        self.variance = float((y - seeded @ ((y @ seeded) / seeded.sum(0))).var())
        self.fixed = np.concatenate([seeded, (subsets @ w0)[:, None][:, : int(w0.any())]], 1)
        span = np.linalg.qr(self.fixed)[0]
        self.left, self.free = y - span @ (span.T @ y), 1 - (span**2).sum(1)
        half = subsets * np.sqrt(spread)
        values, self.basis = _squared_singular(half - span @ (span.T @ half))
        self.degrees = len(y) - span.shape[1]
        scale = max(values.sum() / self.degrees, np.finfo(float).tiny)
        self.prior, self.values, self.along = spread / scale, values / scale, self.basis.T @ self.left

    def taken(self, ratio: float) -> np.ndarray:
        """The share of every coordinate that r takes: ``tau values / (tau values + 1)``."""
        return ratio * self.values / (ratio * self.values + 1)

    def pi_y(self, ratio: float) -> np.ndarray:
        return self.left - self.basis @ (self.taken(ratio) * self.along)

    def error(self, ratio: float) -> float:
        left_out = self.pi_y(ratio) / (self.free - self.basis**2 @ self.taken(ratio))
        return float((left_out**2).mean() / self.variance)

    def unexplained(self, ratio: float) -> float:
        """``y^T Pi y``, the squares that are left, each in units of its variance."""
        return float(self.left @ self.left - self.along**2 @ self.taken(ratio))

    def solve(self, ratio: float) -> tuple[np.ndarray, float]:
        pi_y = self.pi_y(ratio)
        r = ratio * self.prior * (self.subsets.T @ pi_y)
        slope = np.linalg.lstsq(self.fixed, self.y - self.subsets @ r - pi_y, rcond=None)[0][-1] * self.w0.any()
        return slope * self.w0 + r, float(slope)


def _squared_singular(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared singular values of ``x`` [m, n] that are not rounding, and its left singular vectors, through the smaller
    of x x^T and x^T x.
    """
    m, n = x.shape
    values, vectors = np.linalg.eigh(x @ x.T if m <= n else x.T @ x)
    real = values > max(values[-1], 0.0) * max(m, n) * np.finfo(float).eps
    values, vectors = values[real], vectors[:, real]
    return values, vectors if m <= n else x @ vectors / np.sqrt(values)
