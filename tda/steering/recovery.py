"""A design of subsets, and the weights of documents from what was measured on those subsets.

A datamodel explains the effect y of training on a subset by a sum over its members: y = b + M w, with M the bool
matrix [K, n] of memberships. If only k documents matter, they are found by the Lasso

    w = argmin 1/2 ||y - b - M w||^2 + lambda ||w||_1

from K of order k log(n / k) subsets when M is the adjacency matrix of an expander, which a random left-regular graph
(every document in exactly d subsets) is with high probability (Berinde et al. 2008). The penalty, the intercept and the
alternatives to the Lasso are not published; here the penalty is chosen per query by the error on held-out measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np
from sklearn.linear_model import lasso_path

from tda.tools.options import is_whole

METHODS = ("lasso", "ridge", "correlation")
LASSO_PATH = np.geomspace(1.0, 1e-3, 25)  # in units of the penalty that leaves no document
RIDGE_PATH = np.geomspace(1e3, 1e-5, 25)  # in units of the mean nonzero eigenvalue of the centred M^T M
HELD_OUT = 0.2  # of the measurements, to choose a penalty by
PATIENCE = 3  # penalties in a row that may fail to lower the held-out error before the path is left
TOLERANCE = 1e-6  # of ||y||^2, the duality gap at which coordinate descent stops
TRADES = 5  # a document: the subsets that only one of two documents is in are shared out again (Strona et al. 2014)
SWEEPS = 20_000  # at most, of coordinate descent


def left_regular(n: int, K: int, d: int, seed: int = 0) -> np.ndarray:
    """K subsets of n documents, bool [K, n]: every document in exactly d, and sizes that differ by at most one.

    Each document goes to the d subsets that are smallest so far; then memberships are traded: else every K / d of them
    in a row would share out all subsets among themselves. Raises ``ValueError`` unless 1 <= d < K <= n * d.
    """
    if not (is_whole(n) and is_whole(K) and is_whole(d) and n >= 2 and 1 <= d < K):
        raise ValueError(
            f"left_regular: d={d}, K={K}, n={n}; each of n >= 2 documents is in d of K subsets, d a whole number from "
            f"1 to K - 1. Change d, or K."
        )
    if n * d < K:
        raise ValueError(
            f"left_regular: {n} documents in {d} subsets each leave some of {K} subsets empty; n * d >= K is needed. "
            f"Raise d to {ceil(K / n)}, or lower K to {n * d}."
        )
    random = np.random.default_rng(seed)
    measure, sizes = np.zeros((K, n), dtype=bool), np.zeros(K)
    for i in random.permutation(n):
        chosen = np.argsort(sizes + random.random(K))[:d]
        measure[chosen, i] = True
        sizes[chosen] += 1
    for _ in range(TRADES * n):
        i, j = random.choice(n, 2, replace=False)
        differ = np.flatnonzero(measure[:, i] != measure[:, j])
        own = random.permutation(len(differ)) < len(differ) // 2
        measure[differ, i], measure[differ, j] = own, ~own
    return measure


def recover(
    measure: np.ndarray, y: np.ndarray, method: str = "lasso", seed: int = 0, penalty: float | np.ndarray | None = None
) -> np.ndarray:
    """Weights of documents, float64 [Q, n], in the unit of ``y`` per document; positive where ``y`` is raised.

    ``measure`` bool [K, n] says which documents a subset holds, ``y`` [K, Q] what was measured on it. Both are centred,
    which is an unpenalised intercept. ``method``: ``lasso``, ``ridge``, or ``correlation``, the mean of y over the
    subsets with a document less that over those without. A document in no subset or in all has weight 0.
    ``penalty`` (one number or one a query) is relative: to the smallest lambda that leaves no document (lasso), to the
    mean nonzero eigenvalue of the centred M^T M (ridge). Without it :func:`penalties` chooses, by ``seed``.
    Raises ``ValueError`` for shapes that do not fit, an empty subset, a constant or not finite measurement.
    """
    measure, y = _checked(measure, y, method)
    X, Y = measure - measure.mean(0), y - y.mean(0)
    if method == "correlation":
        if penalty is not None:
            raise ValueError("recover: correlation has no penalty; leave it out, or choose lasso or ridge.")
        squares = (X * X).sum(0)
        return np.divide(Y.T @ X, squares, out=np.zeros((Y.shape[1], X.shape[1])), where=squares > 1e-12)
    if penalty is None:
        penalty = penalties(measure, y, method, seed)
    penalty = np.broadcast_to(np.asarray(penalty, dtype=float), Y.shape[1:])
    if not (np.isfinite(penalty) & (penalty > 0)).all():
        raise ValueError(f"recover: penalty={penalty.min()}; it must be finite and above 0 (about 1e-3 to 1).")
    solve = _SOLVERS[method](X)
    return np.stack([solve(column, at) for column, at in zip(Y.T, penalty, strict=True)])


def penalties(measure: np.ndarray, y: np.ndarray, method: str = "lasso", seed: int = 0) -> np.ndarray:
    """For every query the relative penalty of the path with the least squared error on held-out measurements, [Q].

    The same fifth of the subsets, drawn by ``seed``, is left out for all queries. The Lasso's path is followed until
    ``PATIENCE`` penalties in a row have not lowered the error. Errors as in :func:`recover`.
    """
    measure, y = _checked(measure, y, method)
    K = len(measure)
    kept = round(K * (1 - HELD_OUT))
    if not 2 <= kept < K:
        raise ValueError(f"recover: {K} measurements are too few to hold some out; measure more, or give a penalty.")
    if method == "correlation":
        raise ValueError("penalties: correlation has no penalty; choose lasso or ridge.")
    order = np.random.default_rng(seed).permutation(K)
    fit, out = order[:kept], order[kept:]
    X, Y = measure[fit] - measure[fit].mean(0), y[fit] - y[fit].mean(0)
    X_held, Y_held = measure[out] - measure[fit].mean(0), y[out] - y[fit].mean(0)
    solve = _SOLVERS[method](X)
    path, patience = (LASSO_PATH, PATIENCE) if method == "lasso" else (RIDGE_PATH, len(RIDGE_PATH))
    chosen = []
    for column, wanted in zip(Y.T, Y_held.T, strict=True):
        errors, w = [], np.zeros(X.shape[1])
        for at in path:
            w = solve(column, at, w)
            errors.append(((wanted - X_held @ w) ** 2).mean())
            if min(errors) < min(errors[-patience:]):
                break
        chosen.append(path[int(np.argmin(errors))])
    return np.array(chosen)


def _lasso(X: np.ndarray) -> Callable[..., np.ndarray]:
    """``solve(y, penalty, start)`` [n] by coordinate descent; without a start down a path of six to this penalty."""
    X, gram = np.asfortranarray(X), X.T @ X

    def solve(y: np.ndarray, penalty: float, start: np.ndarray | None = None) -> np.ndarray:
        towards = X.T @ y
        top = np.abs(towards).max() / len(y)
        if top <= 1e-12 * np.abs(y).max():  # no column explains anything: nothing to descend
            return np.zeros(len(towards))
        path = np.geomspace(1.0, penalty, 6) if start is None and penalty < 1 else np.array([penalty])
        options = {"precompute": gram, "Xy": towards, "coef_init": start, "tol": TOLERANCE, "max_iter": SWEEPS}
        return lasso_path(X, y, alphas=path * top, check_input=False, **options)[1][:, -1]

    return solve


def _ridge(X: np.ndarray) -> Callable[..., np.ndarray]:
    """``solve(y, penalty)`` [n] by singular values, at a penalty in units of the mean nonzero eigenvalue."""
    left, s, right = np.linalg.svd(X, full_matrices=False)
    s = np.where(s > 1e-9 * s[0], s, 0.0)
    unit = (s**2).sum() / max(1, (s > 0).sum())
    return lambda y, penalty, start=None: right.T @ (s / (s**2 + penalty * unit) * (left.T @ y))


_SOLVERS = {"lasso": _lasso, "ridge": _ridge}


def _checked(measure: np.ndarray, y: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    measure, y = np.asarray(measure), np.asarray(y, dtype=np.float64)
    if method not in METHODS:
        raise ValueError(f"recover: method={method!r}; one of {METHODS}.")
    if measure.dtype != bool or measure.ndim != 2 or y.ndim != 2 or len(y) != len(measure) or not y.size:
        raise ValueError(
            f"recover: measure is {measure.dtype} {measure.shape}, y {y.shape}; a bool matrix [K, n] and measurements "
            f"[K, Q] of the same K subsets are needed."
        )
    if len(empty := np.flatnonzero(~measure.any(1))):
        raise ValueError(f"recover: subsets {empty[:5].tolist()} are empty, and measure nothing; leave them out.")
    if len(bad := np.flatnonzero(~np.isfinite(y).all(0))):
        raise ValueError(f"recover: measurements of queries {bad[:5].tolist()} are not finite; check their losses.")
    if len(flat := np.flatnonzero(np.ptp(y, axis=0) == 0)):
        raise ValueError(
            f"recover: measurements of queries {flat[:5].tolist()} are the same on every subset, so no document can be "
            f"told from another; measure an output that the subsets change."
        )
    return measure, y
